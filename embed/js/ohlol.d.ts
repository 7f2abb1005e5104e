// SPDX-License-Identifier: Apache-2.0
/** A model of ohlol on ONNX Runtime: text in, labels out. Works with `onnxruntime-web` and `onnxruntime-node`. */

/** What is used of `onnxruntime-common`; both packages are it. */
export interface Runtime {
  InferenceSession: { create(bytes: Uint8Array, options?: object): Promise<any> };
  Tensor: new (type: string, data: any, dims: readonly number[]) => any;
}

export interface Options {
  /** `import * as ort from "onnxruntime-web"`, say. Without it, onnxruntime-node is imported in Node and onnxruntime-web elsewhere. */
  ort?: Runtime;
  /** Given to `InferenceSession.create`. */
  session?: object;
}

/** The bytes of a bundle's files by their names, for an app that has them already. */
export type Files = Record<string, Uint8Array>;

/**
 * A place in the text that was given, in UTF-16 code units, as `text.slice(start, end)` takes them. Characters that
 * normalisation changed have the place of all that they came from.
 */
export interface Span {
  start: number;
  end: number;
}

/** The label of one character (code point) of the normalised text. */
export interface Labelled extends Span {
  character: string;
  label: string;
  probability: number;
  known: boolean;
}

export interface Word extends Span {
  text: string;
}

export interface Tagged {
  /** The text given, normalised; `labels` has an entry for each of its code points. */
  text: string;
  labels: Labelled[];
  /** `(T, C)`, row by row, in the order of `model.labels`. */
  probabilities: Float32Array;
  /** Where the labels mark words (`label_scheme` "words"), else undefined. */
  words?: Word[];
  sentences?: Word[];
}

export interface Classified {
  text: string;
  /** null for an empty text. */
  label: string | null;
  probability: number | null;
  /** Every label of the model, the most probable first; empty for an empty text. */
  probabilities: { label: string; probability: number }[];
}

export interface Scored {
  text: string;
  /** The likeliest next character; null where it is an unknown one, or the text is empty. */
  next: string | null;
  probability: number | null;
  /** The mean of −ln p over the characters after the first; null below two characters. */
  natsPerCharacter: number | null;
}

export interface Sampling {
  /** How many characters at most; 200. */
  length?: number;
  /** 1; 0 takes the likeliest character. */
  temperature?: number;
  topK?: number;
  topP?: number;
  stop?: string | string[];
  /** A number in [0, 1) for each character; `Math.random`. */
  random?: () => number;
}

/**
 * One text that comes in pieces. It owns its state. Calls may overlap: they are answered in the order in which they were
 * made. Where one fails the stream is as it was before it, and what waits behind it fails with the same error.
 */
export interface Stream<Answer = Tagged | Classified | Scored> {
  /**
   * The answer for the next piece, of any size; what a later piece could still change is held back. Spans count from the
   * beginning of the text. `classify` answers for the text so far, `lm` scores the piece, given all before it.
   */
  feed(piece: string): Promise<Answer>;
  /** The answer for what was held back. The stream cannot be used after it. */
  finish(): Promise<Answer>;
}

/** `ok`: every number within the proof's tolerance and `labels`: every label equal, ties within it aside. */
export interface Proof {
  passed: boolean;
  rows: { file: string; case: string; maxError: number; labels: boolean; ok: boolean }[];
}

export interface Model {
  readonly task: "tag" | "classify" | "lm";
  /** In the order of their ids; of `lm`, empty. */
  readonly labels: readonly string[];
  /** The manifest's facts, as the .onnx file's metadata has them. */
  readonly facts: Record<string, any>;
  /** Characters of the longest text: Infinity where stream.onnx reads it in pieces, else 65,536, or fewer of a model of many labels. */
  readonly maxLength: number;
  /** Whether the model knows a character (of a normalised text). */
  knows(character: string): boolean;
  normalise(text: string): string;
  /** Task `tag`. Several texts are answered in batches. An empty array throws a RangeError, as does a text that is too long. */
  tag(text: string): Promise<Tagged>;
  tag(texts: readonly string[]): Promise<Tagged[]>;
  /** Task `classify`. */
  classify(text: string): Promise<Classified>;
  classify(texts: readonly string[]): Promise<Classified[]>;
  /** Task `lm`. */
  score(text: string): Promise<Scored>;
  score(texts: readonly string[]): Promise<Scored[]>;
  /** A new text in pieces, `model.stream<Tagged>()` say; needs stream.onnx, which a network that reads both ways has not. */
  stream<Answer = Tagged | Classified | Scored>(): Promise<Stream<Answer>>;
  /** Task `lm`: characters that may follow, as they are made. Needs stream.onnx. Wrong arguments throw at once. */
  generate(prompt?: string, sampling?: Sampling): AsyncGenerator<string, void, void>;
  /** The bundle's own test data, replayed here. Throws where the model was loaded from a single file. */
  verify(): Promise<Proof>;
  /** Gives the runtime's memory back; the model cannot be used after it. */
  release(): Promise<void>;
}

/**
 * Loads a bundle (its folder), or a single `model.onnx`, by path (Node) or URL, or from bytes.
 * Throws an Error that names the file where it is not one of ours, damaged, or of another contract version.
 */
export function load(source: string | URL | Uint8Array | ArrayBuffer | Files, options?: Options): Promise<Model>;
