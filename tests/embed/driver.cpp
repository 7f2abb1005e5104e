// Answers what tests/embed/test_cpp.py asks: a request a line, of words and of strings in hexadecimal ("-": empty), and
// an answer a line, as JSON.

#include "ohlol_verify.hpp"

#include <iostream>
#include <thread>

namespace {

using Words = std::vector<std::string>;

std::string unhex(const std::string& word) {
  std::string bytes;
  for (std::size_t at = 0; word != "-" && at < word.size(); at += 2)
    bytes += static_cast<char>(std::stoi(word.substr(at, 2), nullptr, 16));
  return bytes;
}

Words unhex(const Words& words, std::size_t from) {
  Words found;
  for (std::size_t k = from; k < words.size(); ++k) found.push_back(unhex(words[k]));
  return found;
}

std::string json(double number) {
  std::ostringstream stream;
  stream.precision(17);
  stream << number;
  return std::isfinite(number) ? stream.str() : "null";
}

std::string json(const std::string& text) {
  std::ostringstream stream;
  stream << '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') stream << '\\' << c;
    else if (static_cast<unsigned char>(c) < 0x20) stream << "\\u00" << "01"[c >> 4] << "0123456789abcdef"[c & 15];
    else stream << c;
  }
  stream << '"';
  return stream.str();
}

template <class T>
std::string json(const std::optional<T>& value) {
  return value ? json(*value) : "null";
}

std::string json(const ohlol::Span& span) {
  return "[" + std::to_string(span.start) + "," + std::to_string(span.end) + "]";
}

template <class Items, class Each>
std::string list(const Items& items, Each each) {
  std::string text = "[";
  for (const auto& item : items) text += (text.size() > 1 ? "," : "") + each(item);
  return text + "]";
}

std::string json(const std::vector<ohlol::Word>& words) {
  return list(words, [](const ohlol::Word& word) { return "[" + json(word.text) + "," + json(word.span) + "]"; });
}

std::string json(const ohlol::Tagged& tagged) {
  const auto all = [&](auto each) { return list(tagged.labels, each); };
  return "{\"text\":" + json(tagged.text) +
         ",\"labels\":" + all([](const ohlol::Labelled& one) { return json(one.label); }) +
         ",\"spans\":" + all([](const ohlol::Labelled& one) { return json(one.span); }) +
         ",\"characters\":" + all([](const ohlol::Labelled& one) { return std::to_string(std::uint32_t{one.character}); }) +
         ",\"known\":" + all([](const ohlol::Labelled& one) { return std::string(one.known ? "true" : "false"); }) +
         ",\"ids\":" + all([](const ohlol::Labelled& one) { return std::to_string(one.label_id); }) +
         ",\"best\":" + all([](const ohlol::Labelled& one) { return json(double{one.probability}); }) +
         ",\"words\":" + json(tagged.words) + ",\"sentences\":" + json(tagged.sentences) +
         ",\"probabilities\":" + list(tagged.probabilities, [](float p) { return json(double{p}); }) + "}";
}

std::string json(const ohlol::Classified& classified) {
  return "{\"text\":" + json(classified.text) + ",\"label\":" + json(classified.label) +
         ",\"probability\":" + json(classified.probability) + ",\"probabilities\":" +
         list(classified.probabilities, [](const auto& p) { return "[" + json(p.first) + "," + json(p.second) + "]"; }) + "}";
}

std::string json(const ohlol::Scored& scored) {
  return "{\"text\":" + json(scored.text) + ",\"next\":" + json(scored.next) + ",\"probability\":" +
         json(scored.probability) + ",\"nats\":" + json(scored.nats_per_character) + "}";
}

template <class R>
std::string pieces(const ohlol::Model& model, const Words& given) {
  ohlol::Stream<R> begun = model.stream<R>(), stream = std::move(begun);
  std::vector<R> answers;
  for (const std::string& piece : given) answers.push_back(stream.feed(piece));
  answers.push_back(stream.finish());
  std::string again;
  try {
    stream.feed("");
  } catch (const ohlol::Error& error) {
    again = error.what();
  }
  return "{\"answers\":" + list(answers, [](const R& answer) { return json(answer); }) +
         ",\"characters\":" + std::to_string(stream.characters()) + ",\"again\":" + json(again) + "}";
}

// temperature, top_k, top_p ("-": none), length, parts after which to stop (0: never), prompt, stop strings, "/", numbers
std::string made(const ohlol::Model& model, const Words& words) {
  ohlol::Sampling sampling;
  sampling.temperature = std::stod(words[1]);
  if (words[2] != "-") sampling.top_k = std::stoul(words[2]);
  if (words[3] != "-") sampling.top_p = std::stod(words[3]);
  sampling.length = std::stoul(words[4]);
  const std::size_t most = std::stoul(words[5]);
  std::size_t at = 7;
  for (; at < words.size() && words[at] != "/"; ++at) sampling.stop.push_back(unhex(words[at]));
  if (++at < words.size()) sampling.random = [&words, at]() mutable { return std::stod(words.at(at++)); };
  Words parts;
  sampling.on_text = [&](std::string_view part) {
    parts.emplace_back(part);
    return parts.size() != most;
  };
  const std::string all = model.generate(unhex(words[6]), sampling);
  return "{\"made\":" + json(all) + ",\"parts\":" + list(parts, [](const std::string& part) { return json(part); }) + "}";
}

std::string checked(const std::string& path) {
  const ohlol::Proof proof = ohlol::verify(path);
  return "{\"passed\":" + std::string(proof.passed ? "true" : "false") +
         ",\"rows\":" + list(proof.rows, [](const ohlol::Checked& row) {
           return "[" + json(row.file) + "," + json(row.test) + "," + json(row.max_error) + "," +
                  std::to_string(row.labels_differing) + "," + (row.passed ? "true" : "false") + "]";
         }) + "}";
}

// Several threads ask one model, and feed streams of their own; whether each had the answer that one alone has.
template <class Ask>
std::string in_threads(Ask ask) {
  const std::string expected = ask();
  std::array<std::string, 4> found;
  std::vector<std::thread> threads;
  for (std::string& one : found)
    threads.emplace_back([&] {
      for (int k = 0; k < 3; ++k) one = ask();
    });
  for (std::thread& thread : threads) thread.join();
  return std::all_of(found.begin(), found.end(), [&](const std::string& one) { return one == expected; }) ? "true" : "false";
}

// A form that an app may bring: it knows é, and e with U+0301, only.
std::string own(std::string_view text, std::string_view form) {
  std::string found(text);
  const bool composed = form == "NFC" || form == "NFKC";
  const std::string from = composed ? "e\xCC\x81" : "\xC3\xA9", to = composed ? "\xC3\xA9" : "e\xCC\x81";
  for (std::size_t at = 0; (at = found.find(from, at)) != std::string::npos; at += to.size()) found.replace(at, from.size(), to);
  return found;
}

std::string answer(std::optional<ohlol::Model>& model, const Words& words) {
  static std::map<std::string, ohlol::Model> kept;
  const std::string& what = words[0];
  if (what == "keep") return kept.emplace(words[1], *model), "true";
  if (what == "take") return model = kept.at(words[1]), "true";
  if (what == "load" || what == "load-own" || what == "load-threads") {
    ohlol::Options options;
    if (what == "load-own") options.normalise = own;
    if (what == "load-threads") options.threads = std::stoi(words[2]);
    ohlol::Model loaded(unhex(words[1]), options);
    const ohlol::Model taken = std::move(loaded);  // what was moved from answers still
    model.emplace(loaded);
    return "{\"task\":" + json(model->task()) + ",\"scheme\":" + json(model->label_scheme()) +
           ",\"form\":" + json(model->normalisation()) +
           ",\"labels\":" + list(model->labels(), [](const std::string& label) { return json(label); }) + "}";
  }
  if (what == "wrong-stream") return model->stream<ohlol::Scored>(), "true";
  if (what == "verify") return checked(unhex(words[1]));
  if (what == "normalise") return json(model->normalise(unhex(words[1])));
  if (what == "made") return made(*model, words);
  if (what == "tag") return json(model->tag(unhex(words[1])));
  if (what == "classify") return json(model->classify(unhex(words[1])));
  if (what == "score") return json(model->score(unhex(words[1])));
  const Words texts = unhex(words, 1);
  const std::string& task = model->task();
  if (what == "texts") {
    if (task == "tag") return list(model->tag(texts), [](const auto& one) { return json(one); });
    if (task == "classify") return list(model->classify(texts), [](const auto& one) { return json(one); });
    return list(model->score(texts), [](const auto& one) { return json(one); });
  }
  if (what == "pieces") {
    if (task == "tag") return pieces<ohlol::Tagged>(*model, texts);
    if (task == "classify") return pieces<ohlol::Classified>(*model, texts);
    return pieces<ohlol::Scored>(*model, texts);
  }
  if (what == "threads") {
    const ohlol::Model copy = *model;
    return in_threads([&] { return json(copy.score(texts[0])) + pieces<ohlol::Scored>(copy, texts); });
  }
  throw std::logic_error("no such request: " + what);
}

}  // namespace

int main() {
  std::optional<ohlol::Model> model;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream stream(line);
    Words words;
    for (std::string word; stream >> word;) words.push_back(word);
    std::string said;
    try {
      said = answer(model, words);
    } catch (const ohlol::Error& error) {
      said = "{\"error\":" + json(std::string(error.what())) + "}";
    } catch (const std::invalid_argument& error) {
      said = "{\"argument\":" + json(std::string(error.what())) + "}";
    }
    std::cout << said << "\n";
  }
}
