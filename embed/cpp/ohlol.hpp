// ohlol.hpp: a bundle of ohlol in a C++17 app. UTF-8 in, labels with byte offsets out, on the C++ API of ONNX Runtime.
//
//   ohlol::Model model("BUNDLE");                  // or a single model.onnx
//   for (const auto& c : model.tag("hello").labels)
//     std::cout << c.span.start << " " << c.label << " " << c.probability << "\n";
//
// Needs onnxruntime_cxx_api.h (API version 21, of ONNX Runtime 1.21, or later) and its library; for texts beyond ASCII
// and the commonest letters also utf8proc (its header is found by itself, link -lutf8proc; OHLOL_NO_UTF8PROC leaves it
// out) or a function of your own in `Options::normalise`. docs/cpp.md of ohlol says how to build and what is promised.
//
// Errors: `ohlol::Error`, a std::runtime_error with one line, for files that are not right and texts that cannot be
// answered; std::invalid_argument for arguments that cannot be meant, such as an empty list of texts.
//
// Threads: a Model may be used by several threads at once, a Stream by one at a time. One thread computes a call.
//
// Before ONNX Runtime is first used, ORT_DISABLE_TELEMETRY=1 is put into the environment unless the variable is there:
// its official builds report home otherwise. An app with threads that read the environment sets it in main().
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <locale>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <onnxruntime_cxx_api.h>

#if !defined(OHLOL_NO_UTF8PROC) && __has_include(<utf8proc.h>)
#define OHLOL_UTF8PROC 1
#include <utf8proc.h>
#else
#define OHLOL_UTF8PROC 0
#endif

namespace ohlol {

// ---- What goes in and what comes out ----------------------------------------------------------------------------------

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Bytes of the text that was given, for `text.substr(start, end - start)`; in a stream they count from its beginning.
/// Characters that normalisation changed have the place of all that they came from.
struct Span {
  std::size_t start = 0, end = 0;
};

/// The label of one character (code point) of the normalised text. Bytes that are no UTF-8 are U+FFFD, one for each of
/// the parts that Unicode recommends (and Python's `bytes.decode("utf-8", "replace")` makes).
struct Labelled {
  Span span;
  char32_t character = 0;
  std::string label;
  std::size_t label_id = 0;
  float probability = 0;
  bool known = false;
};

struct Word {
  Span span;
  std::string text;
};

/// `text` is the text given, normalised, in UTF-8; `labels` has an entry for each of its T code points; `probabilities`
/// is (T, C), row by row, in the order of `Model::labels`. `words` and `sentences` are empty where the labels do not
/// mark words (`Model::label_scheme` is not "words").
struct Tagged {
  std::string text;
  std::vector<Labelled> labels;
  std::vector<float> probabilities;
  std::vector<Word> words, sentences;
};

/// Of an empty text there is no label. `probabilities` has every label of the model, the most probable first.
struct Classified {
  std::string text;
  std::optional<std::string> label;
  std::optional<float> probability;
  std::vector<std::pair<std::string, float>> probabilities;
};

/// `next` is the likeliest next character: none where that is an unknown one, or the text is empty. `nats_per_character`
/// is the mean of -ln p over the characters after the first: none where there are fewer than two.
struct Scored {
  std::string text;
  std::optional<std::string> next;
  std::optional<double> probability, nats_per_character;
};

/// How a text is made. Padding and the unknown character never come; logits are divided by `temperature` (0 takes the
/// likeliest); then `top_k` of the likeliest stay; of these the smallest set whose probability is at least `top_p`.
struct Sampling {
  std::size_t length = 200;  // characters at most
  double temperature = 1;
  std::optional<std::size_t> top_k;
  std::optional<double> top_p;
  std::vector<std::string> stop;                  // the text ends before the first of these
  std::function<double()> random;                 // in [0, 1), for each character; else one of its own, seeded anew
  std::function<bool(std::string_view)> on_text;  // told each part of the text once it is sure; false ends it
};

using Normalise = std::function<std::string(std::string_view text, std::string_view form)>;

struct Options {
  int threads = 1;      // that compute one call
  Normalise normalise;  // UTF-8 to UTF-8 in the form "NFC", "NFD", "NFKC" or "NFKD"; is taken before utf8proc
};

/// How a file of a bundle answered one case of the bundle's test data here.
struct Checked {
  std::string file, test;
  double max_error = 0;
  std::size_t labels_differing = 0;
  bool passed = false;
};

struct Proof {
  bool passed = false;
  std::vector<Checked> rows;
};

// ---- Text: UTF-8, code points, normalisation --------------------------------------------------------------------------

namespace detail {

struct Character {
  std::int32_t point = 0;
  Span span;
};
using Characters = std::vector<Character>;

/// Append the code points of `bytes`, the first of which is at `offset` of the text; how many bytes were read. With
/// `more` to come, a character that is not finished at the end is not read.
inline std::size_t decode(std::string_view bytes, bool more, std::size_t offset, Characters& to) {
  std::size_t at = 0;
  while (at < bytes.size()) {
    const auto lead = static_cast<unsigned char>(bytes[at]);
    // Table 3-7 of the Unicode standard: how many bytes follow, and what the first of them may be.
    const std::size_t follow = lead < 0x80   ? 0
                               : lead < 0xC2 ? 4
                               : lead < 0xE0 ? 1
                               : lead < 0xF0 ? 2
                               : lead < 0xF5 ? 3
                                             : 4;
    unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    std::int32_t point = follow == 0 ? lead : lead & (0x3F >> follow);
    std::size_t size = 1;
    bool right = follow < 4;
    for (; right && size <= follow; low = 0x80, high = 0xBF) {
      if (at + size == bytes.size()) {
        if (more) return at;
        right = false;
        break;
      }
      const auto next = static_cast<unsigned char>(bytes[at + size]);
      right = low <= next && next <= high;
      if (right) point = (point << 6) | (next & 0x3F), ++size;
    }
    to.push_back({right ? point : 0xFFFD, {offset + at, offset + at + size}});
    at += size;
  }
  return at;
}

inline Characters decode(std::string_view bytes) {
  Characters text;
  text.reserve(bytes.size());
  decode(bytes, false, 0, text);
  return text;
}

inline void encode(std::int32_t point, std::string& to) {
  const auto put = [&](std::int32_t byte) { to += static_cast<char>(static_cast<unsigned char>(byte)); };
  if (point < 0x80) return put(point);
  const int follow = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
  put((0xFF00 >> (follow + 1) & 0xFF) | (point >> (6 * follow)));
  for (int k = follow - 1; k >= 0; --k) put(0x80 | (point >> (6 * k) & 0x3F));
}

template <class Iterator>
std::string encode(Iterator begin, Iterator end) {
  std::string bytes;
  for (; begin != end; ++begin) encode(begin->point, bytes);
  return bytes;
}

inline bool within(std::int32_t point, std::int32_t first, std::int32_t last) {
  return first <= point && point <= last;
}
inline bool is_ideograph(std::int32_t point) { return within(point, 0x3400, 0x9FFF); }
inline bool is_syllable(std::int32_t point) { return within(point, 0xAC00, 0xD7A3); }  // of Hangul, composed

/// Texts in the normal form of the model. Each is cut into pieces that can be normalised apart, as in ohlol's serve/cut.py.
class Normaliser {
 public:
  static constexpr std::size_t kMostHeld = 4096;  // characters that a stream holds back

  Normaliser(std::string form, Normalise own) : form_(std::move(form)), own_(std::move(own)) {}

  Characters operator()(const Characters& text) const {
    if (form_ == "none") return text;
    Characters normal;
    normal.reserve(text.size());
    std::vector<std::int32_t> piece;
    for (std::size_t start = 0, stop; start < text.size(); start = stop) {
      for (stop = start + 1; stop < text.size() && !begins(text[stop].point);) ++stop;
      if (stop == start + 1 && is_normal(text[start].point)) {
        normal.push_back(text[start]);
        continue;
      }
      piece.clear();
      for (std::size_t k = start; k < stop; ++k) piece.push_back(text[k].point);
      const std::vector<std::int32_t> changed = normalised(piece);
      const Span all{text[start].span.start, text[stop - 1].span.end};
      for (std::size_t k = 0; k < changed.size(); ++k)
        normal.push_back({changed[k], changed == piece ? text[start + k].span : all});
    }
    return normal;
  }

  /// How many characters of a text no later piece of it can change.
  std::size_t ready(const Characters& text) const {
    if (form_ == "none") return text.size();
    std::size_t at = text.size();
    while (at > 0 && !ends(text[at - 1].point) && !begins(text[at - 1].point)) --at;
    if (at > 0 && !ends(text[at - 1].point)) --at;
    if (text.size() - at > kMostHeld)
      throw Error(std::to_string(text.size() - at) + " combining characters in a row: text in pieces is normalised (" +
                  form_ + ") with at most " + std::to_string(kMostHeld) + "; is it text? Give it whole");
    return at;
  }

 private:
  /// Whether a character alone is in the normal form, by what needs no tables. All before U+0300 are composed.
  bool is_normal(std::int32_t point) const {
    const bool composed = form_ == "NFC" || form_ == "NFKC";
    return point < 0x80 || (point < 0x300 && form_ == "NFC") || is_ideograph(point) || (composed && is_syllable(point));
  }

  /// Whether nothing that follows joins it: general categories Cc, Zs, Zl, Zp, which will not grow.
  static bool ends(std::int32_t point) {
    return point <= 0x20 || within(point, 0x7F, 0xA0) || point == 0x1680 || within(point, 0x2000, 0x200A) ||
           within(point, 0x2028, 0x2029) || point == 0x202F || point == 0x205F || point == 0x3000;
  }

  /// Whether it never joins what is before it, nor changes place with it. Without tables, few are known to.
  bool begins(std::int32_t point) const {
    if (point < 0x300 || is_ideograph(point) || is_syllable(point)) return true;
#if OHLOL_UTF8PROC
    if (own_) return false;
    std::int32_t first = point;
    std::array<std::int32_t, 32> apart{};
    if (take_apart(point, true, apart) > 0) first = apart[0];
    // Vowels and finals of Hangul, and the vowels of Kirat Rai, which Unicode has since version 16.
    if (within(first, 0x1160, 0x11FF) || within(first, 0x16D63, 0x16D6A)) return false;
    const utf8proc_category_t category = utf8proc_category(first);
    return category != UTF8PROC_CATEGORY_MN && category != UTF8PROC_CATEGORY_MC && category != UTF8PROC_CATEGORY_ME;
#else
    return false;
#endif
  }

  std::vector<std::int32_t> normalised(const std::vector<std::int32_t>& piece) const {
    if (own_) {
      std::string bytes;
      for (const std::int32_t point : piece) encode(point, bytes);
      std::vector<std::int32_t> points;
      for (const Character& c : decode(own_(bytes, form_))) points.push_back(c.point);
      return points;
    }
#if OHLOL_UTF8PROC
    const auto marks = [](std::int32_t point) { return utf8proc_get_property(point)->combining_class; };
    std::vector<std::int32_t> apart;
    std::array<std::int32_t, 32> one{};
    for (const std::int32_t point : piece)
      apart.insert(apart.end(), one.begin(), one.begin() + take_apart(point, form_ == "NFKC" || form_ == "NFKD", one));
    // utf8proc sorts marks as well, but in a time that grows with the square of their number.
    for (auto run = apart.begin(); run != apart.end();) {
      const auto end = std::find_if(run, apart.end(), [&](std::int32_t point) { return marks(point) == 0; });
      std::stable_sort(run, end, [&](std::int32_t a, std::int32_t b) { return marks(a) < marks(b); });
      run = end == apart.end() ? end : end + 1;
    }
    if (form_ == "NFD" || form_ == "NFKD") return apart;
    // utf8proc 2.8 takes U+11A7 for a final of Hangul, and loses it; it joins nothing.
    std::vector<std::int32_t> composed;
    for (auto part = apart.begin(); part != apart.end();) {
      const auto end = std::find(part + 1, apart.end(), 0x11A7);
      std::vector<std::int32_t> points(part, end);
      const auto size = utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                                                 static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
      composed.insert(composed.end(), points.begin(), points.begin() + size);
      part = end;
    }
    return composed;
#else
    std::ostringstream hex;
    hex.imbue(std::locale::classic());
    hex << std::hex << std::uppercase << *std::max_element(piece.begin(), piece.end());
    throw Error("the text holds U+" + hex.str() + ", and to bring that into the model's form, " + form_ +
                ", takes Unicode's tables: build with utf8proc (-lutf8proc), or give Options::normalise");
#endif
  }

#if OHLOL_UTF8PROC
  static utf8proc_ssize_t take_apart(std::int32_t point, bool compatible, std::array<std::int32_t, 32>& to) {
    int last = 0;
    const int how = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0);
    return utf8proc_decompose_char(point, to.data(), static_cast<utf8proc_ssize_t>(to.size()),
                                   static_cast<utf8proc_option_t>(how), &last);
  }
#endif

  std::string form_;
  Normalise own_;
};

// ---- Files: SHA-256, protobuf, JSON -----------------------------------------------------------------------------------

inline std::string one_line(std::string_view text) {
  std::string line(text.substr(0, 300));
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  return line;
}

class Sha256 {
 public:
  void update(std::string_view data) {
    size_ += data.size();
    for (const char c : data) {
      block_[used_++] = static_cast<unsigned char>(c);
      if (used_ == block_.size()) next();
    }
  }

  std::string hex() {
    const std::uint64_t bits = size_ * 8;
    update(std::string_view("\x80", 1));
    while (used_ != 56) update(std::string_view("\0", 1));
    for (int shift = 56; shift >= 0; shift -= 8) block_[used_++] = static_cast<unsigned char>(bits >> shift);
    next();
    std::string text;
    for (const std::uint32_t word : state_)
      for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
    return text;
  }

 private:
  void next() {
    static constexpr std::array<std::uint32_t, 64> kRounds{
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    const auto turn = [](std::uint32_t x, int n) { return (x >> n) | (x << (32 - n)); };
    std::array<std::uint32_t, 64> w{};
    for (std::size_t k = 0; k < 64; ++k)
      if (k < 16)
        for (std::size_t byte = 0; byte < 4; ++byte) w[k] = w[k] << 8 | block_[4 * k + byte];
      else
        w[k] = w[k - 16] + w[k - 7] + (turn(w[k - 15], 7) ^ turn(w[k - 15], 18) ^ w[k - 15] >> 3) +
               (turn(w[k - 2], 17) ^ turn(w[k - 2], 19) ^ w[k - 2] >> 10);
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t k = 0; k < 64; ++k) {
      const std::uint32_t one = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + kRounds[k] + w[k];
      const std::uint32_t two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
    }
    const std::array<std::uint32_t, 8> add{a, b, c, d, e, f, g, h};
    for (std::size_t k = 0; k < 8; ++k) state_[k] += add[k];
    used_ = 0;
  }

  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> block_{};
  std::size_t used_ = 0;
  std::uint64_t size_ = 0;
};

inline std::string sha256(std::string_view data) {
  Sha256 digest;
  digest.update(data);
  return digest.hex();
}

struct Field {
  std::uint64_t number = 0, value = 0;  // the value of a whole number
  std::string_view content, whole;      // of anything else; the bytes of the field
};

inline std::uint64_t varint(std::string_view bytes, std::size_t& at) {
  std::uint64_t value = 0;
  for (unsigned shift = 0; shift < 64 && at < bytes.size(); shift += 7) {
    const auto byte = static_cast<unsigned char>(bytes[at++]);
    value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  throw Error("a number is cut off");
}

/// Call `each` with every field of a protobuf message.
template <class Each>
void for_fields(std::string_view message, Each each) {
  std::size_t at = 0;
  while (at < message.size()) {
    const std::size_t start = at;
    const std::uint64_t key = varint(message, at);
    Field field{key >> 3, 0, {}, {}};
    if ((key & 7) == 0) {
      field.value = varint(message, at);
    } else {
      const std::uint64_t size = (key & 7) == 1   ? 8
                                 : (key & 7) == 5 ? 4
                                 : (key & 7) == 2 ? varint(message, at)
                                                  : message.size() + 1;
      if (size > message.size() - at) throw Error("a field is cut off or of no known kind");
      field.content = message.substr(at, static_cast<std::size_t>(size));
      at += field.content.size();
    }
    field.whole = message.substr(start, at - start);
    each(field);
  }
}

/// Whether a weight is said to stand in another file, which the runtime would go and read.
inline bool reads_other_files(std::string_view message, char kind = 'm', int depth = 0) {
  // In a ModelProto and what is in it, the fields that lead to tensors: of what, number, to what. As in artifacts/onnx_file.py.
  static constexpr struct {
    char of;
    unsigned number;
    char to;
  } kLeads[] = {{'m', 7, 'g'},  {'m', 20, 'r'}, {'m', 25, 'f'}, {'r', 1, 'g'},  {'r', 2, 'g'},  {'f', 7, 'n'},
                {'f', 11, 'a'}, {'g', 1, 'n'},  {'g', 5, 't'},  {'g', 15, 's'}, {'n', 5, 'a'},  {'a', 5, 't'},
                {'a', 6, 'g'},  {'a', 10, 't'}, {'a', 11, 'g'}, {'a', 22, 's'}, {'a', 23, 's'}, {'s', 1, 't'}};
  if (depth > 64) throw Error("graphs are nested too deep");
  bool found = false;
  for_fields(message, [&](const Field& field) {
    if (kind == 't')
      found = found || field.number == 13 || (field.number == 14 && (field.value != 0 || !field.content.empty()));
    for (const auto& lead : kLeads)
      if (lead.of == kind && lead.number == field.number)
        found = found || reads_other_files(field.content, lead.to, depth + 1);
  });
  return found;
}

/// A JSON value. Two readers must not take a text for two things: what is not JSON is refused, and so are names that
/// are there twice, lone surrogates, numbers beyond float64 or of more than 20 digits, and values nested deeper than 32.
struct Json {
  enum Kind { kNull, kBool, kNumber, kString, kList, kObject } kind = kNull;
  std::string text;                // of a string; a number, true and false as they are written
  std::vector<std::string> names;  // of an object, sorted
  std::vector<Json> items;

  bool operator==(const Json& other) const {
    return kind == other.kind && text == other.text && names == other.names && items == other.items;
  }

  /// The value of a name; a null where there is none of this kind.
  const Json& at(std::string_view name, Kind of) const {
    static const Json none;
    const auto found = std::lower_bound(names.begin(), names.end(), name);
    if (found == names.end() || *found != name) return none;
    const Json& value = items[static_cast<std::size_t>(found - names.begin())];
    return value.kind == of ? value : none;
  }

  static Json parse(std::string_view text) {
    const Characters all = decode(text);
    if (encode(all.begin(), all.end()) != text) throw Error("not UTF-8");
    Reader reader{text, 0};
    Json value = reader.value(0);
    reader.skip();
    if (reader.at != text.size()) throw Error("there is more after the value");
    return value;
  }

 private:
  struct Reader {
    std::string_view text;
    std::size_t at;

    char peek() const { return at < text.size() ? text[at] : '\0'; }
    void skip() {
      while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at;
    }
    [[noreturn]] void fail(const char* problem) const {
      throw Error(std::string(problem) + " at byte " + std::to_string(at));
    }
    bool take(std::string_view word) {
      if (text.substr(at, word.size()) != word) return false;
      at += word.size();
      return true;
    }

    Json value(int depth) {
      if (depth > 32) fail("nested too deep");
      skip();
      if (peek() == '"') return {kString, string(), {}, {}};
      if (peek() == '{' || peek() == '[') return many(depth);
      if (take("null")) return {};
      if (take("true")) return {kBool, "true", {}, {}};
      if (take("false")) return {kBool, "false", {}, {}};
      return number();
    }

    Json many(int depth) {
      const bool object = text[at++] == '{';
      const char end = object ? '}' : ']';
      Json all{object ? kObject : kList, {}, {}, {}};
      std::map<std::string, Json> named;
      skip();
      for (bool more = peek() != end; more;) {
        std::string name;
        if (object) {
          skip();
          name = string();
          skip();
          if (!take(":")) fail("expected a colon");
        }
        Json item = value(depth + 1);
        if (!object)
          all.items.push_back(std::move(item));
        else if (!named.emplace(name, std::move(item)).second)
          fail("a name is there twice");
        skip();
        more = take(",");
        if (!more && peek() != end) fail("expected a comma");
      }
      ++at;
      for (auto& [name, item] : named) all.names.push_back(name), all.items.push_back(std::move(item));
      return all;
    }

    std::string string() {
      if (!take("\"")) fail("expected a string");
      std::string found;
      while (!take("\"")) {
        if (at >= text.size() || static_cast<unsigned char>(peek()) < 0x20)
          fail("a string is cut off, or holds a control character");
        if (!take("\\"))
          found += text[at++];
        else if (const auto plain = std::string_view("\"\\/bfnrt").find(peek()); at < text.size() && plain < 8)
          found += "\"\\/\b\f\n\r\t"[plain], ++at;
        else
          encode(escaped(), found);
      }
      return found;
    }

    std::int32_t escaped() {
      std::int32_t point = unit();
      if (!within(point, 0xD800, 0xDFFF)) return point;
      const std::int32_t low = point < 0xDC00 && take("\\") ? unit() : 0;
      if (!within(low, 0xDC00, 0xDFFF)) fail("a lone surrogate");
      return 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    }

    std::int32_t unit() {
      std::int32_t found = 0;
      if (!take("u")) fail("no such escape");
      for (int k = 0; k < 4; ++k) {
        const auto digit = std::string_view("0123456789abcdef0000000000ABCDEF").find(peek());
        if (at >= text.size() || digit == std::string_view::npos) fail("no such escape");
        found = found << 4 | static_cast<std::int32_t>(digit % 16), ++at;
      }
      return found;
    }

    Json number() {
      const std::size_t start = at;
      const auto digits = [&] {
        const std::size_t first = at;
        while (peek() >= '0' && peek() <= '9') ++at;
        if (at == first) fail("expected a value");
        return at - first;
      };
      take("-");
      const bool zero = peek() == '0';
      if (digits() > 1 && zero) fail("a number with a zero before it");
      bool whole = true;
      if (take(".")) whole = false, digits();
      if (take("e") || take("E")) {
        whole = false;
        if (!take("+")) take("-");
        digits();
      }
      Json found{kNumber, std::string(text.substr(start, at - start)), {}, {}};
      std::istringstream stream(found.text);
      stream.imbue(std::locale::classic());
      double value = 0;
      stream >> value;
      if ((whole && found.text.size() > 20) || stream.fail() || !std::isfinite(value)) fail("a number out of range");
      return found;
    }
  };
};

// ---- What an .onnx file says of itself, and what a bundle holds -----------------------------------------------------------

constexpr std::size_t kUnknown = 1, kReserved = 2;  // ids; those of characters come after
constexpr std::uint64_t kMostBytes = 0x7FFFFFFF;    // of a file: protobuf, and so ONNX, ends there

/// The manifest's facts, as docs/format.md of ohlol has them.
struct Facts {
  std::map<std::string, Json> all;
  std::string task, form, scheme;
  std::vector<std::int32_t> characters;
  std::unordered_map<std::int32_t, std::size_t> ids;
  std::vector<std::string> labels;
  std::size_t classes = 0;

  std::size_t id(std::int32_t point) const {
    const auto found = ids.find(point);
    return found == ids.end() ? kUnknown : found->second;
  }

  static Facts of(std::map<std::string, Json> all, const std::string& where) {
    Facts facts;
    const auto take = [&](const char* name, Json::Kind kind) -> const Json& {
      const auto found = all.find(name);
      if (found == all.end() || found->second.kind != kind)
        throw Error(where + ": `" + name + "` is missing or of another kind; copy or export it again");
      return found->second;
    };
    if (all.count("format") == 0 || all["format"].text != "ohlol-bundle")
      throw Error(where + ": not of a bundle of ohlol; export it with `ohlol export`");
    for (const char* name : {"format_version", "contract_version"})
      if (take(name, Json::kNumber).text != "1")
        throw Error(where + ": " + name + " is " + one_line(all[name].text) +
                    ", this ohlol.hpp knows 1 only; get the " +
                    "ohlol.hpp of the ohlol that made it (`ohlol embed cpp`), or export it again");
    facts.task = take("task", Json::kString).text;
    const Json& alphabet = take("alphabet", Json::kObject);
    facts.form = alphabet.at("normalisation", Json::kString).text;
    for (const Character& c : decode(alphabet.at("characters", Json::kString).text)) {
      const bool once = facts.ids.emplace(c.point, kReserved + facts.characters.size()).second;
      if (!once || c.point == 0) throw Error(where + ": its alphabet has a character twice, or NUL; export it again");
      facts.characters.push_back(c.point);
    }
    for (const Json& label : take("labels", Json::kList).items) {
      const auto& labels = facts.labels;
      if (label.kind != Json::kString || std::find(labels.begin(), labels.end(), label.text) != labels.end())
        throw Error(where + ": labels must be strings, each there once; export it again");
      facts.labels.push_back(label.text);
    }
    if (all.count("label_scheme") == 0) throw Error(where + ": `label_scheme` is missing; copy or export it again");
    facts.scheme = all["label_scheme"].text;
    std::vector<std::string> sorted = facts.labels;
    std::sort(sorted.begin(), sorted.end());
    const bool marks = facts.task == "tag" && sorted == std::vector<std::string>{"B", "I", "O", "S"};
    const auto& form = facts.form;
    if ((facts.task != "tag" && facts.task != "classify" && facts.task != "lm") ||
        (facts.task == "lm") != facts.labels.empty() ||
        (!facts.scheme.empty() && (facts.scheme != "words" || !marks)) ||
        (form != "NFC" && form != "NFD" && form != "NFKC" && form != "NFKD" && form != "none"))
      throw Error(where + ": task, labels, label_scheme or normalisation are not those of a model; export it again");
    facts.classes = facts.task == "lm" ? facts.characters.size() + kReserved : facts.labels.size();
    facts.all = std::move(all);
    return facts;
  }

  /// From the metadata of a model's bytes, which are what was exported: their digest is right, and no weight is elsewhere.
  static Facts of_model(std::string_view model, const std::string& where) {
    try {
      std::map<std::string, Json> all;
      Sha256 digest;
      for_fields(model, [&](const Field& field) {
        if (field.number != 14) return digest.update(field.whole);
        std::string_view name, value;
        for_fields(field.content, [&](const Field& part) { (part.number == 1 ? name : value) = part.content; });
        if (name.substr(0, 6) == "ohlol." && !all.emplace(name.substr(6), Json::parse(value)).second)
          throw Error("a name is there twice in its metadata");
      });
      if (reads_other_files(model)) throw Error("a weight of it stands in another file, which is refused");
      // A file without a digest passes: those of the first versions have none.
      if (const auto said = all.find("sha256"); said != all.end() && said->second.text != digest.hex())
        throw Error("its sha256 is not that of its metadata");
      all.erase("sha256");
      return of(std::move(all), where);
    } catch (const Error& error) {
      const std::string problem = error.what();
      if (problem.compare(0, where.size(), where) == 0) throw;
      throw Error(where + ": damaged or no ONNX file of ohlol: " + problem + "; copy or export it again");
    }
  }

  /// The name of a fact that is another one in another file of the bundle; "" where there is none.
  std::string differs(const Facts& other, bool same_kind) const {
    for (const auto* facts : {this, &other})
      for (const auto& [name, value] : facts->all) {
        if (!same_kind && (name == "inputs" || name == "outputs")) continue;
        const auto here = all.find(name), there = other.all.find(name);
        if (here == all.end() || there == other.all.end() || !(here->second == there->second)) return name;
      }
    return "";
  }
};

inline std::string read(const std::filesystem::path& file, std::uint64_t most = kMostBytes) {
  std::error_code problem;  // a pipe would not even open
  const bool there = std::filesystem::is_regular_file(file, problem);
  const std::uintmax_t size = there ? std::filesystem::file_size(file, problem) : 0;
  std::ifstream stream;
  if (there && !problem) stream.open(file, std::ios::binary);
  if (!stream.is_open())
    throw Error(file.string() + ": missing, or cannot be read; expected a bundle of ohlol or its model.onnx");
  if (size > most)
    throw Error(file.string() + ": has " + std::to_string(size) + " bytes, expected at most " + std::to_string(most));
  std::string bytes(static_cast<std::size_t>(size), '\0');
  stream.read(bytes.data(), static_cast<std::streamsize>(size));
  bytes.resize(static_cast<std::size_t>(stream.gcount()));
  return bytes;
}

/// The files of a bundle by their names, each what the manifest says it is; a single model.onnx is all of its own.
struct Bundle {
  std::string where;
  Facts facts;
  std::map<std::string, std::string> files;

  static Bundle open(const std::filesystem::path& path) {
    std::error_code problem;
    if (!std::filesystem::is_directory(path, problem)) {
      Bundle alone{path.string(), {}, {{"model.onnx", read(path)}}};
      alone.facts = Facts::of_model(alone.files["model.onnx"], alone.where);
      return alone;
    }
    const std::string where = (path / "manifest.json").string();
    Json manifest;
    try {
      manifest = Json::parse(read(path / "manifest.json", 1 << 26));
    } catch (const Error& error) {
      const std::string said = error.what();
      throw Error(said.compare(0, where.size(), where) == 0
                      ? said
                      : where + ": not JSON (" + said + "); copy or export it again");
    }
    Bundle bundle{path.string(), {}, {}};
    const Json files = manifest.at("files", Json::kObject);
    for (std::size_t k = 0; k < files.names.size(); ++k)
      bundle.files[files.names[k]] = checked(path, files.names[k], files.items[k]);
    std::map<std::string, Json> all;
    for (std::size_t k = 0; k < manifest.names.size(); ++k)
      if (manifest.names[k] != "files") all[manifest.names[k]] = std::move(manifest.items[k]);
    bundle.facts = Facts::of(std::move(all), where);
    if (bundle.files.count("model.onnx") == 0) throw Error(where + ": lists no model.onnx; export it again");
    return bundle;
  }

 private:
  static std::string checked(const std::filesystem::path& folder, const std::string& name, const Json& entry) {
    const std::string where = (folder / "manifest.json").string() + ": the file name \"" + one_line(name) + "\"";
    std::istringstream parts(name + "/");
    for (std::string part; std::getline(parts, part, '/');)
      if (part.empty() || part == "." || part == "..") throw Error(where + " leaves the bundle; refused");
    for (const char c : name)
      if (c == '\\' || c == ':' || static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
        throw Error(where + " is refused");
    std::error_code problem;
    const auto real = std::filesystem::weakly_canonical(folder / name, problem);
    const auto root = std::filesystem::weakly_canonical(folder, problem);
    if (problem || std::mismatch(root.begin(), root.end(), real.begin(), real.end()).first != root.end())
      throw Error((folder / name).string() + ": a link that leaves the bundle; refused");
    const std::string& said = entry.at("bytes", Json::kNumber).text;
    if (const auto size = std::filesystem::file_size(real, problem); !problem && std::to_string(size) != said)
      throw Error((folder / name).string() + ": damaged or changed: it has " + std::to_string(size) +
                  " bytes, the manifest says " + one_line(said) + "; copy or export the bundle again");
    std::string bytes = read(folder / name);
    if (sha256(bytes) != entry.at("sha256", Json::kString).text)
      throw Error((folder / name).string() + ": damaged or changed: its sha256 is not that of the manifest; copy or " +
                  "export the bundle again");
    return bytes;
  }
};

// ---- Running a file -------------------------------------------------------------------------------------------------------

inline Ort::Env& environment() {
  static Ort::Env env = [] {
#ifdef _WIN32
    if (std::getenv("ORT_DISABLE_TELEMETRY") == nullptr) _putenv_s("ORT_DISABLE_TELEMETRY", "1");
#else
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // stays as it is where it is set
#endif
#ifndef ORT_API_MANUAL_INIT
    if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr)
      throw Error(std::string("the library of ONNX Runtime is ") + OrtGetApiBase()->GetVersionString() +
                  ", older than the " + "headers this was built with (API version " + std::to_string(ORT_API_VERSION) +
                  ")");
#endif
    return Ort::Env(ORT_LOGGING_LEVEL_FATAL, "ohlol");
  }();
  return env;
}

/// What the runtime is asked: `points` (B, T), the rows padded, and their lengths or, of stream.onnx, the state before.
struct Batch {
  std::int64_t B = 0, T = 0;
  std::vector<std::int32_t> points, lengths;
  std::vector<float> state;  // (S, B, H)
};

/// An open file. It holds no state.
class File {
 public:
  File(std::string_view model, const Facts& facts, bool streams, int threads, const std::string& where)
      : facts_(facts), streams_(streams), where_(where) {
    const Facts inside = Facts::of_model(model, where);
    if (const std::string name = facts.differs(inside, !streams); !name.empty())
      throw Error(where + ": `" + name + "` is not what the bundle says; copy or export the bundle again");
    if (threads < 1 || threads > 1024)
      throw std::invalid_argument("threads is " + std::to_string(threads) + ", expected 1 to 1024");
    environment();
    guarded("open", [&] {
      Ort::SessionOptions options;
      options.SetIntraOpNumThreads(threads);
      options.SetInterOpNumThreads(1);
      options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);  // errors come as exceptions
      options.AddConfigEntry("session.intra_op.allow_spinning", "0");
      session_ = Ort::Session(environment(), model.data(), model.size(), options);
      Ort::AllocatorWithDefaultOptions allocator;
      const std::vector<std::string> expected{"codepoints", streams ? "state" : "lengths"};
      std::vector<std::string> found;
      for (std::size_t k = 0; k < session_.GetInputCount(); ++k)
        found.emplace_back(session_.GetInputNameAllocated(k, allocator).get());
      if (found != expected)
        throw Error(where + ": takes `" + one_line(found.empty() ? "nothing" : found[0]) + "`" +
                    (found.size() > 1 ? " and `" + one_line(found[1]) + "`" : "") + ", not `codepoints` and `" +
                    expected[1] + "`: another file of a bundle; load the bundle, or its model.onnx");
      if (streams) shape_ = session_.GetInputTypeInfo(1).GetTensorTypeAndShapeInfo().GetShape();
    });
    if (streams && (shape_.size() != 3 || shape_[0] < 1 || shape_[2] < 1 || shape_[0] > 1 << 21 || shape_[2] > 1 << 20))
      throw Error(where + ": `state` has no shape of (states, batch, hidden); export it again");
  }

  std::vector<float> beginning(std::int64_t B = 1) const {
    return std::vector<float>(static_cast<std::size_t>(shape_[0] * B * shape_[2]));
  }

  /// The outputs `names`, each of the type and shape of the contract.
  std::vector<Ort::Value> run(Batch& batch, const std::vector<const char*>& names) const {
    std::vector<Ort::Value> found;
    guarded("run", [&] {
      const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
      const std::array<std::int64_t, 2> rows{batch.B, batch.T};
      const std::array<std::int64_t, 3> states{streams_ ? shape_[0] : 0, batch.B, streams_ ? shape_[2] : 0};
      const std::array<const char*, 2> inputs{"codepoints", streams_ ? "state" : "lengths"};
      std::array<Ort::Value, 2> given{
          Ort::Value::CreateTensor<std::int32_t>(memory, batch.points.data(), batch.points.size(), rows.data(), 2),
          streams_ ? Ort::Value::CreateTensor<float>(memory, batch.state.data(), batch.state.size(), states.data(), 3)
                   : Ort::Value::CreateTensor<std::int32_t>(memory, batch.lengths.data(), batch.lengths.size(),
                                                            rows.data(), 1)};
      found = session_.Run(Ort::RunOptions{nullptr}, inputs.data(), given.data(), 2, names.data(), names.size());
      for (std::size_t k = 0; k < names.size(); ++k) {
        const std::string name = names[k];
        std::vector<std::int64_t> shape{batch.B};
        if (facts_.task != "classify") shape.push_back(batch.T);
        if (name == "next_state")
          shape.assign(states.begin(), states.end());
        else if (name != "label_ids")
          shape.push_back(static_cast<std::int64_t>(facts_.classes));
        const auto type =
            name == "label_ids" ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        const auto info = found[k].GetTensorTypeAndShapeInfo();
        if (info.GetElementType() != type || info.GetShape() != shape)
          throw Error(where_ + ": `" + name + "` is not that of the contract; export it again");
      }
    });
    return found;
  }

 private:
  template <class Do>
  void guarded(const char* what, Do run) const {
    try {
      run();
    } catch (const Ort::Exception& error) {
      throw Error(where_ + ": ONNX Runtime " + OrtGetApiBase()->GetVersionString() + " cannot " + what + " it (" +
                  one_line(error.what()) + ")");
    }
  }

  const Facts& facts_;
  bool streams_;
  std::string where_;
  mutable Ort::Session session_{nullptr};  // running it is safe from several threads, though not said to be const
  std::vector<std::int64_t> shape_;        // of the state
};

// ---- What a task makes of a file's outputs --------------------------------------------------------------------------------

/// -ln p of an id by the logits (V,), in float64.
inline double nats(const float* logits, std::size_t V, std::size_t id) {
  const double highest = *std::max_element(logits, logits + V);
  double total = 0;
  for (std::size_t k = 0; k < V; ++k) total += std::exp(logits[k] - highest);
  return std::log(total) + highest - logits[id];
}

/// The answer for one text, to which the outputs are told part by part.
struct Answer {
  std::vector<std::size_t> ids;  // of `tag`
  std::vector<float>
      numbers;     // `tag`: probabilities (T, C); of the last character, `classify`: probabilities, `lm`: logits
  double sum = 0;  // of -ln p over `scored` characters
  std::size_t scored = 0;

  static std::vector<const char*> asks(const Facts& facts) {
    if (facts.task == "tag") return {"probabilities", "label_ids"};
    return {facts.task == "lm" ? "logits" : "probabilities"};
  }

  /// `count` characters, of which the outputs are those of row `row` of T.
  void add(const Facts& facts, const std::int32_t* points, std::size_t count, const std::vector<Ort::Value>& outputs,
           std::size_t row, std::size_t T) {
    const std::size_t C = facts.classes;
    const float* values = outputs[0].GetTensorData<float>() + row * C * (facts.task == "classify" ? 1 : T);
    if (facts.task == "classify") {
      numbers.assign(values, values + C);
    } else if (facts.task == "tag") {
      const std::int32_t* label_ids = outputs[1].GetTensorData<std::int32_t>() + row * T;
      for (std::size_t t = 0; t < count; ++t) {
        if (label_ids[t] < 0 || static_cast<std::size_t>(label_ids[t]) >= C)
          throw Error("the model gives a label that it does not have; export it again");
        ids.push_back(static_cast<std::size_t>(label_ids[t]));
      }
      numbers.insert(numbers.end(), values, values + count * C);
    } else {
      const float* before = numbers.empty() ? nullptr : numbers.data();
      for (std::size_t t = 0; t < count; ++t) {
        if (before != nullptr) sum += nats(before, C, facts.id(points[t])), ++scored;
        before = values + t * C;
      }
      numbers.assign(values + (count - 1) * C, values + count * C);
    }
  }
};

inline void make(const Facts& facts, const Characters& text, const Answer& answer, Tagged& to) {
  std::vector<std::pair<std::size_t, std::size_t>> words, sentences;  // [first, end) characters
  bool inside = false;
  for (std::size_t t = 0; t < text.size(); ++t) {
    const std::size_t id = answer.ids[t];
    const std::string& label = facts.labels[id];
    to.labels.push_back({text[t].span, static_cast<char32_t>(text[t].point), label, id,
                         answer.numbers[t * facts.classes + id], facts.id(text[t].point) != kUnknown});
    if (facts.scheme.empty()) continue;
    const bool was_inside = std::exchange(inside, label != "O");
    if (label == "B" || label == "S" || (inside && !was_inside)) {
      if (label == "S" || sentences.empty()) sentences.emplace_back(t, t + 1);
      words.emplace_back(t, t + 1);
    }
    if (inside) words.back().second = sentences.back().second = t + 1;
  }
  const auto spelled = [&](const auto& spans, std::vector<Word>& into) {
    for (const auto& [first, end] : spans)
      into.push_back(
          {{text[first].span.start, text[end - 1].span.end}, encode(text.data() + first, text.data() + end)});
  };
  spelled(words, to.words);
  spelled(sentences, to.sentences);
  to.probabilities = answer.numbers;
}

inline void make(const Facts& facts, const Characters&, const Answer& answer, Classified& to) {
  const auto& p = answer.numbers;
  if (p.empty()) return;
  std::vector<std::size_t> order(p.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return p[a] > p[b]; });
  for (const std::size_t k : order) to.probabilities.emplace_back(facts.labels[k], p[k]);
  std::tie(to.label, to.probability) = to.probabilities[0];
}

inline void make(const Facts& facts, const Characters&, const Answer& answer, Scored& to) {
  const auto& logits = answer.numbers;
  if (logits.empty()) return;
  const auto best = static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  if (best >= kReserved) encode(facts.characters[best - kReserved], to.next.emplace());
  to.probability = std::exp(-nats(logits.data(), logits.size(), best));
  if (answer.scored > 0) to.nats_per_character = answer.sum / static_cast<double>(answer.scored);
}

template <class R>
constexpr const char* task_of() {
  static_assert(std::is_same_v<R, Tagged> || std::is_same_v<R, Classified> || std::is_same_v<R, Scored>);
  return std::is_same_v<R, Tagged> ? "tag" : std::is_same_v<R, Classified> ? "classify" : "lm";
}

template <class R>
R result(const Facts& facts, const Characters& text, const Answer& answer) {
  R made;
  made.text = encode(text.begin(), text.end());
  make(facts, text, answer, made);
  return made;
}

/// What models and streams share.
class Core {
 public:
  Core(const std::filesystem::path& path, const Options& options)
      : bundle_(Bundle::open(path)),
        normaliser_(facts().form, options.normalise),
        threads_(options.threads),
        model_(bundle_.files["model.onnx"], facts(), false, threads_, path.string()) {
    for (auto file = bundle_.files.begin();
         file != bundle_.files.end();)  // of all the bytes only these are still needed
      file = file->first == "stream.onnx" ? std::next(file) : bundle_.files.erase(file);
  }

  const Facts& facts() const { return bundle_.facts; }
  const Normaliser& normaliser() const { return normaliser_; }

  bool has_stream() const { return bundle_.files.count("stream.onnx") != 0; }

  const File& stream() const {
    const std::lock_guard<std::mutex> alone(mutex_);
    if (!has_stream()) {
      const auto network = facts().all.find("network");
      const bool both = network != facts().all.end() && network->second.at("bidirectional", Json::kBool).text == "true";
      throw Error(bundle_.where +
                  (both ? ": the network reads both ways, so its answers need the end of the text and it has no "
                          "stream; give it whole texts"
                        : ": holds no stream.onnx; export it with --formats onnx,stream, and load the whole bundle"));
    }
    if (!stream_)
      stream_ = std::make_unique<File>(bundle_.files.at("stream.onnx"), facts(), true, threads_,
                                       bundle_.where + " (stream.onnx)");
    return *stream_;
  }

  void need(const char* task) const {
    if (facts().task != task)
      throw Error(std::string("this needs a model of the task ") + task + ", this one is for " + facts().task);
  }

  /// Tell `answer` the outputs for `text`, in parts; `state` is that before it, and then that after it.
  void read(const Characters& text, std::vector<float>& state, Answer& answer) const {
    std::vector<const char*> names = Answer::asks(facts());
    names.push_back("next_state");
    const std::size_t most = most_characters();
    for (std::size_t start = 0; start < text.size(); start += most) {
      Batch part;
      part.B = 1;
      for (std::size_t k = start; k < std::min(text.size(), start + most); ++k) part.points.push_back(text[k].point);
      part.T = static_cast<std::int64_t>(part.points.size());
      part.state = state;
      const auto outputs = stream().run(part, names);
      answer.add(facts(), part.points.data(), part.points.size(), outputs, 0, part.points.size());
      const float* after = outputs.back().GetTensorData<float>();
      std::copy(after, after + state.size(), state.begin());
    }
  }

  /// Whole texts, those of like length together; long ones by stream.onnx, where there is one.
  template <class R>
  std::vector<R> answer(const std::vector<Characters>& texts) const {
    need(task_of<R>());
    std::vector<Answer> answers(texts.size());
    std::vector<std::size_t> order(texts.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return texts[a].size() < texts[b].size(); });
    const std::size_t most = most_characters();
    for (std::size_t end = order.size(), begin; end > 0; end = begin) {
      const std::size_t T = texts[order[end - 1]].size();  // of those left, the longest says how wide the batch is
      if (T == 0) break;
      const bool in_parts = T > most && has_stream();
      begin = end - (in_parts ? 1 : std::min(end, std::max<std::size_t>(1, most / T)));
      while (texts[order[begin]].empty()) ++begin;
      if (in_parts) {
        std::vector<float> state = stream().beginning();
        read(texts[order[begin]], state, answers[order[begin]]);
        continue;
      }
      Batch batch;
      batch.B = static_cast<std::int64_t>(end - begin), batch.T = static_cast<std::int64_t>(T);
      for (std::size_t k = begin; k < end; ++k) {
        for (const Character& c : texts[order[k]]) batch.points.push_back(c.point);
        batch.points.resize((k - begin + 1) * T);
        batch.lengths.push_back(static_cast<std::int32_t>(texts[order[k]].size()));
      }
      const auto outputs = model_.run(batch, Answer::asks(facts()));
      for (std::size_t k = begin; k < end; ++k)
        answers[order[k]].add(facts(), batch.points.data() + (k - begin) * T, texts[order[k]].size(), outputs,
                              k - begin, T);
    }
    std::vector<R> results;
    for (std::size_t k = 0; k < texts.size(); ++k) results.push_back(result<R>(facts(), texts[k], answers[k]));
    return results;
  }

 private:
  std::size_t most_characters() const {
    return std::min<std::size_t>(8192, std::max<std::size_t>(1, (1 << 22) / facts().classes));
  }

  Bundle bundle_;
  Normaliser normaliser_;
  int threads_;
  File model_;
  mutable std::mutex mutex_;  // for what is opened when it is first needed
  mutable std::unique_ptr<File> stream_;
};

}  // namespace detail

// ---- Streams and models ---------------------------------------------------------------------------------------------------

/// One text that comes in pieces, which may be cut anywhere, within a character too. It owns its state: nobody has to
/// carry it, nobody else can have it. R is Tagged, Classified or Scored. One thread at a time. Where a call throws, the
/// stream is as it was before.
template <class R>
class Stream {
 public:
  explicit Stream(std::shared_ptr<const detail::Core> core)
      : core_(std::move(core)), state_(core_->stream().beginning()) {}
  Stream(Stream&&) noexcept = default;
  Stream& operator=(Stream&&) noexcept = default;

  /// The answer for the next piece. What a later one could still change is held back: the last character with its marks,
  /// and bytes of a character that is not whole. Tagged is about the piece's characters, Classified about the text so
  /// far; Scored scores the piece's characters, each given all before it, and says what follows the text so far.
  R feed(std::string_view piece) { return next(piece, false); }

  /// The answer for what was held back. The stream cannot be used after it.
  R finish() {
    R last = next({}, true);
    core_.reset();
    return last;
  }

  /// How many characters were answered so far.
  std::size_t characters() const { return characters_; }

 private:
  R next(std::string_view piece, bool end) {
    if (!core_) throw Error("the stream has ended, or was moved; begin another text with model.stream()");
    const std::string bytes = unread_ + std::string(piece);
    detail::Characters text = held_;
    const std::size_t read = detail::decode(bytes, !end, offset_, text);
    const std::size_t cut = end ? text.size() : core_->normaliser().ready(text);
    detail::Characters held(text.begin() + static_cast<std::ptrdiff_t>(cut), text.end());
    text.resize(cut);
    text = core_->normaliser()(text);
    std::vector<float> state = state_;
    detail::Answer answer;
    answer.numbers = last_;
    core_->read(text, state, answer);
    R made = detail::result<R>(core_->facts(), text, answer);
    std::string unread = bytes.substr(read);
    // Nothing below throws.
    if (!std::is_same_v<R, Tagged>) last_ = std::move(answer.numbers);
    unread_ = std::move(unread), held_ = std::move(held), state_ = std::move(state);
    offset_ += read, characters_ += text.size();
    return made;
  }

  std::shared_ptr<const detail::Core> core_;
  std::vector<float> state_, last_;
  std::string unread_;       // bytes of a character that is not whole
  detail::Characters held_;  // not yet normalised
  std::size_t offset_ = 0, characters_ = 0;
};

/// A bundle (its folder), or a single model.onnx. Copies share what is loaded.
class Model {
 public:
  /// Throws Error, which names the file, where it is not one of ours, damaged, or of another contract version.
  explicit Model(const std::filesystem::path& path, const Options& options = {})
      : core_(std::make_shared<const detail::Core>(path, options)) {}

  const std::string& task() const { return core_->facts().task; }                   // "tag", "classify" or "lm"
  const std::vector<std::string>& labels() const { return core_->facts().labels; }  // in the order of their ids
  const std::string& label_scheme() const { return core_->facts().scheme; }         // "words", or ""
  const std::string& normalisation() const { return core_->facts().form; }  // "NFC", "NFD", "NFKC", "NFKD" or "none"
  bool knows(char32_t character) const {
    return core_->facts().id(static_cast<std::int32_t>(character)) != detail::kUnknown;
  }

  std::string normalise(std::string_view text) const {
    const detail::Characters normal = normal_of(text);
    return detail::encode(normal.begin(), normal.end());
  }

  /// Several texts are one batch or a few; an empty list of them throws std::invalid_argument.
  Tagged tag(std::string_view text) const { return one<Tagged>(text); }
  std::vector<Tagged> tag(const std::vector<std::string>& texts) const { return many<Tagged>(texts); }
  Classified classify(std::string_view text) const { return one<Classified>(text); }
  std::vector<Classified> classify(const std::vector<std::string>& texts) const { return many<Classified>(texts); }
  Scored score(std::string_view text) const { return one<Scored>(text); }
  std::vector<Scored> score(const std::vector<std::string>& texts) const { return many<Scored>(texts); }

  /// A new text in pieces: `auto stream = model.stream<ohlol::Tagged>();`. Needs stream.onnx.
  template <class R>
  Stream<R> stream() const {
    core_->need(detail::task_of<R>());
    return Stream<R>(core_);
  }

  /// Text that may follow `prompt`; of task `lm`, with stream.onnx. Without a prompt it begins as after a line end.
  std::string generate(std::string_view prompt = {}, const Sampling& sampling = {}) const;

 private:
  detail::Characters normal_of(std::string_view text) const { return core_->normaliser()(detail::decode(text)); }

  template <class R>
  R one(std::string_view text) const {
    std::vector<detail::Characters> texts;
    texts.push_back(normal_of(text));
    return std::move(core_->answer<R>(texts)[0]);
  }

  template <class R>
  std::vector<R> many(const std::vector<std::string>& texts) const {
    if (texts.empty()) throw std::invalid_argument("an empty list of texts; give at least one");
    std::vector<detail::Characters> normal;
    for (const std::string& text : texts) normal.push_back(normal_of(text));
    return core_->answer<R>(normal);
  }

  std::shared_ptr<const detail::Core> core_;
};

namespace detail {

/// What a character is drawn by: of `logits` (V,).
inline std::vector<double> probabilities(const std::vector<float>& logits, const Sampling& sampling) {
  const std::size_t V = logits.size();
  const auto best = std::max_element(logits.begin() + kReserved, logits.end());
  std::vector<double> p(V), kept(V);
  if (sampling.temperature == 0) {
    p[static_cast<std::size_t>(best - logits.begin())] = 1;
    return p;
  }
  for (std::size_t k = kReserved; k < V; ++k)
    p[k] = std::exp((static_cast<double>(logits[k]) - *best) / sampling.temperature);
  if (!sampling.top_k && !sampling.top_p) return p;
  std::vector<std::size_t> order(V - kReserved);
  std::iota(order.begin(), order.end(), kReserved);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  order.resize(std::min(order.size(), sampling.top_k.value_or(V)));
  double all = 0, reached = 0;
  for (const std::size_t k : order) all += p[k];
  for (const std::size_t k : order) {
    kept[k] = p[k];
    reached += p[k];
    if (reached / all >= sampling.top_p.value_or(2)) break;
  }
  return kept;
}

/// A number in [0, 1) falls into the part of one character; those of probability 0 have none.
inline std::size_t draw(const std::vector<double>& p, double random) {
  std::vector<double> total(p.size());
  std::partial_sum(p.begin(), p.end(), total.begin());
  const auto found = std::upper_bound(total.begin(), total.end(), random * total.back());
  if (found != total.end()) return static_cast<std::size_t>(found - total.begin());
  throw Error("the model gives numbers that are none; export it again");
}

/// How many bytes at the end of `text` are the beginning of `stop`.
inline std::size_t begun(const std::string& stop, const std::string& text) {
  std::size_t size = std::min(stop.size() - 1, text.size());
  while (size > 0 && text.compare(text.size() - size, size, stop, 0, size) != 0) --size;
  return size;
}

}  // namespace detail

inline std::string Model::generate(std::string_view prompt, const Sampling& sampling) const {
  core_->need("lm");
  const detail::Facts& facts = core_->facts();
  const auto& s = sampling;
  if (!(s.temperature >= 0) || !std::isfinite(s.temperature) || s.top_k == std::size_t{0} ||
      (s.top_p && !(*s.top_p > 0 && *s.top_p <= 1)))
    throw std::invalid_argument("expected a temperature from 0 up, top_k from 1 up, top_p above 0 and at most 1");
  if (std::count(s.stop.begin(), s.stop.end(), "") != 0)
    throw std::invalid_argument("a stop string is empty; leave it out");
  if (facts.characters.empty()) throw Error("the model's alphabet is empty, so there is nothing to make");
  auto random = s.random;
  if (!random)
    random = [engine = std::mt19937_64(std::random_device()())]() mutable {
      return static_cast<double>(engine() >> 11) * 0x1p-53;
    };

  detail::Characters points = normal_of(prompt);
  if (points.empty() && facts.id('\n') != detail::kUnknown) points = detail::decode("\n");
  std::vector<float> state = core_->stream().beginning();
  detail::Answer answer;
  answer.numbers.assign(facts.classes, 0);  // all equally likely, where there is neither a prompt nor a line end
  std::string made, held;
  const auto give = [&](std::size_t size) {
    made.append(held, 0, size);
    const bool more = size == 0 || !s.on_text || s.on_text(std::string_view(held).substr(0, size));
    held.erase(0, size);
    return more;
  };
  for (std::size_t k = 0; k < s.length; ++k) {
    core_->read(points, state, answer);
    const double drawn = random();
    if (!(drawn >= 0 && drawn < 1))
      throw std::invalid_argument("Sampling::random gave " + std::to_string(drawn) + ", expected 0 to below 1");
    const std::int32_t point =
        facts.characters[detail::draw(detail::probabilities(answer.numbers, s), drawn) - detail::kReserved];
    points.assign(1, {point, {}});
    detail::encode(point, held);
    std::size_t found = std::string::npos, open = 0;
    for (const std::string& stop : s.stop) {
      found = std::min(found, held.find(stop));
      open = std::max(open, detail::begun(stop, held));
    }
    const bool more = give(found != std::string::npos ? found : held.size() - open);
    if (!more || found != std::string::npos) return made;
  }
  give(held.size());
  return made;
}

// ---- The proof, replayed --------------------------------------------------------------------------------------------------

namespace detail {

/// Numbers of test data: an ONNX TensorProto with raw_data, of this name and shape. An empty shape is filled in.
template <class T>
std::vector<T> tensor(const Bundle& bundle, const std::string& file, std::string_view name,
                      std::vector<std::int64_t>& shape) {
  const auto data = bundle.files.find(file);
  std::vector<std::int64_t> found;
  std::string_view called, raw;
  std::uint64_t type = 0, size = sizeof(T);
  for_fields(data == bundle.files.end() ? std::string_view() : data->second, [&](const Field& field) {
    if (field.number == 1 && field.content.empty()) found.push_back(static_cast<std::int64_t>(field.value));
    for (std::size_t at = 0; field.number == 1 && at < field.content.size();)  // packed
      found.push_back(static_cast<std::int64_t>(varint(field.content, at)));
    if (field.number == 2) type = field.value;
    if (field.number == 8) called = field.content;
    if (field.number == 9) raw = field.content;
  });
  if (shape.empty()) shape = found;
  bool right = called == name && found == shape && !found.empty() && type == (std::is_same_v<T, float> ? 1u : 6u);
  for (const std::int64_t axis : found) {
    right = right && axis >= 1 && axis <= static_cast<std::int64_t>(kMostBytes);
    if (right) right = (size *= static_cast<std::uint64_t>(axis)) <= raw.size();
  }
  std::vector<T> values(right && size == raw.size() ? raw.size() / sizeof(T) : 0);
  if (!values.empty()) std::memcpy(values.data(), raw.data(), raw.size());
  const bool finite =
      std::all_of(values.begin(), values.end(), [](T value) { return std::isfinite(static_cast<double>(value)); });
  if (values.empty() || !finite)
    throw Error(bundle.where + ": " + file + " is not `" + std::string(name) +
                "` as the contract has it; export it again");
  return values;
}

/// The outputs of a batch, one array for each.
struct Numbers {
  std::vector<float> logits, probabilities;
  std::vector<std::int32_t> label_ids;
};

inline Numbers replay(const File& file, const Facts& facts, Batch& batch, bool streams) {
  const std::size_t B = static_cast<std::size_t>(batch.B), T = static_cast<std::size_t>(batch.T), C = facts.classes;
  const std::size_t wide = facts.task == "classify" ? 1 : T;
  Numbers all{std::vector<float>(B * wide * C), std::vector<float>(B * wide * C),
              std::vector<std::int32_t>(facts.task == "lm" ? 0 : B * wide, -1)};
  std::vector<const char*> names{"logits", "probabilities"};
  if (facts.task != "lm") names.push_back("label_ids");
  const auto keep = [&](const std::vector<Ort::Value>& found, std::size_t first, std::size_t count) {
    std::copy_n(found[0].GetTensorData<float>(), count * C,
                all.logits.begin() + static_cast<std::ptrdiff_t>(first * C));
    std::copy_n(found[1].GetTensorData<float>(), count * C,
                all.probabilities.begin() + static_cast<std::ptrdiff_t>(first * C));
    if (facts.task != "lm")
      std::copy_n(found[2].GetTensorData<std::int32_t>(), count,
                  all.label_ids.begin() + static_cast<std::ptrdiff_t>(first));
  };
  if (!streams) return keep(file.run(batch, names), 0, B * wide), all;
  names.push_back("next_state");
  for (std::size_t row = 0; row < B; ++row) {  // in pieces of 1 to 11 characters, the state carried
    Batch piece;
    piece.B = 1, piece.state = file.beginning();
    const auto length = static_cast<std::size_t>(batch.lengths[row]);
    for (std::size_t start = 0, size; start < length; start += size) {
      size = std::min(length - start, 1 + (7 * start + row) % 11);
      const auto from = batch.points.begin() + static_cast<std::ptrdiff_t>(row * T + start);
      piece.points.assign(from, from + static_cast<std::ptrdiff_t>(size)), piece.T = static_cast<std::int64_t>(size);
      const auto found = file.run(piece, names);
      facts.task == "classify" ? keep(found, row, 1) : keep(found, row * T + start, size);
      std::copy_n(found.back().GetTensorData<float>(), piece.state.size(), piece.state.begin());
    }
  }
  return all;
}

/// By the rule of ohlol's artifacts/parity.py: a number may be off by tolerance * (1 + the largest of its answer).
inline void compare(const Numbers& found, const Numbers& expected, std::size_t C, double tolerance, Checked& row) {
  row.passed = true;
  const auto largest = [&](const std::vector<float>& values, std::size_t answer) {
    double most = 0;
    for (std::size_t k = answer * C; k < (answer + 1) * C; ++k)
      most = std::max(most, std::abs(static_cast<double>(values[k])));
    return most;
  };
  for (const auto numbers : {&Numbers::logits, &Numbers::probabilities})
    for (std::size_t k = 0; k < (expected.*numbers).size(); ++k) {
      const double error = std::abs(static_cast<double>((found.*numbers)[k]) - (expected.*numbers)[k]);
      row.max_error = error > row.max_error || std::isnan(error) ? error : row.max_error;
      row.passed = row.passed && error <= tolerance * (1 + largest(expected.*numbers, k / C));
    }
  for (std::size_t k = 0; k < expected.label_ids.size(); ++k) {
    const std::int32_t have = found.label_ids[k], want = expected.label_ids[k];
    if (have == want) continue;
    const float* logits = expected.logits.data() + k * C;
    const bool tie = want >= 0 && have >= 0 && static_cast<std::size_t>(have) < C &&
                     static_cast<double>(*std::max_element(logits, logits + C)) - logits[have] <=
                         2 * tolerance * (1 + largest(expected.logits, k));
    row.labels_differing += tie ? 0 : 1;
  }
  row.passed = row.passed && row.labels_differing == 0;
}

}  // namespace detail

/// Replay a bundle's own test data here: what the PyTorch network answered, in float64, when the bundle was made. All its
/// .onnx files are run but text.onnx, which this header never uses. Throws Error where there is no test data.
inline Proof verify(const std::filesystem::path& path) {
  using namespace detail;
  const Bundle bundle = Bundle::open(path);
  const Facts& facts = bundle.facts;
  static constexpr struct {
    const char *name, *outputs;
    double tolerance;
  } kFiles[] = {{"model.onnx", "output", 1e-5},
                {"model.batch.onnx", "output", 1e-5},
                {"stream.onnx", "output", 1e-5},
                {"model.fp16.onnx", "fp16_output", 1e-5},
                {"model.int8.onnx", "int8_output", 0.05}};
  Proof proof{true, {}};
  for (const auto& [name, outputs, tolerance] : kFiles) {
    if (bundle.files.count(name) == 0) continue;
    const bool streams = std::string(name) == "stream.onnx";
    const File file(bundle.files.at(name), facts, streams, 1, (path / name).string());
    std::size_t cases = 0;
    for (std::string folder = "test_data_set_0"; bundle.files.count(folder + "/" + outputs + "_0.pb") != 0;
         folder = "test_data_set_" + std::to_string(++cases)) {
      std::vector<std::int64_t> shape, rows;
      Batch batch;
      batch.points = tensor<std::int32_t>(bundle, folder + "/input_0.pb", "codepoints", shape);
      if (shape.size() != 2) throw Error(bundle.where + ": " + folder + " is no batch; export it again");
      batch.B = shape[0], batch.T = shape[1];
      rows = {batch.B};
      batch.lengths = tensor<std::int32_t>(bundle, folder + "/input_1.pb", "lengths", rows);
      for (const std::int32_t length : batch.lengths)  // outside of the contract the runtime may end the process
        if (length < 1 || length > batch.T)
          throw Error(bundle.where + ": " + folder + " has a length outside of its rows; export it again");
      if (facts.task == "classify") shape = rows;
      Numbers expected;
      const std::string base = folder + "/" + outputs;
      if (facts.task != "lm") expected.label_ids = tensor<std::int32_t>(bundle, base + "_2.pb", "label_ids", shape);
      shape.push_back(static_cast<std::int64_t>(facts.classes));
      expected.logits = tensor<float>(bundle, base + "_0.pb", "logits", shape);
      expected.probabilities = tensor<float>(bundle, base + "_1.pb", "probabilities", shape);
      Checked row{name, folder, 0, 0, false};
      compare(replay(file, facts, batch, streams), expected, facts.classes, tolerance, row);
      proof.passed = proof.passed && row.passed;
      proof.rows.push_back(std::move(row));
    }
    if (cases == 0) throw Error(path.string() + ": holds no test data to verify " + name + " by; export it again");
  }
  return proof;
}

}  // namespace ohlol
