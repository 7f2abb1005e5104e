// ohlol.hpp: a bundle of ohlol in a C++17 app. UTF-8 in, labels with byte offsets out, on the C++ API of ONNX Runtime.
//
//   ohlol::Model model("BUNDLE");                  // or a single model.onnx
//   for (const auto& c : model.tag("hello").labels)
//     std::cout << c.span.start << " " << c.label << " " << c.probability << "\n";
//
// Needs onnxruntime_cxx_api.h (tried with that of ONNX Runtime 1.21) and its library; for texts beyond ASCII and the
// commonest letters also utf8proc (its header is found by itself, link -lutf8proc; OHLOL_NO_UTF8PROC leaves it out, in
// all files of a program or in none) or a function of your own in `Options::normalise`. docs/cpp.md of ohlol says how to
// build and what is promised.
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

#if __cplusplus < 201703L && !(defined(_MSVC_LANG) && _MSVC_LANG >= 201703L)
#error "ohlol.hpp needs C++17: -std=c++17, or /std:c++17"
#endif

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
#include <tuple>
#include <type_traits>
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

// ---- What goes in and what comes out ----

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

/// `next` is the likeliest next character: none where that is an unknown one, or the text is empty.
/// `nats_per_character` is the mean of -ln p over the characters after the first: none where there are fewer than two.
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

/// Texts in the model's normal form. Each is cut into pieces that can be normalised apart, as in ohlol's serve/cut.py.
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
      for (stop = start + 1; stop < text.size() && !ends(text[stop - 1].point) && !begins(text[stop].point);) ++stop;
      if (stop == start + 1 && is_normal(text[start].point)) {
        normal.push_back(text[start]);
        continue;
      }
      piece.clear();
      for (std::size_t k = start; k < stop; ++k) piece.push_back(text[k].point);
      const std::vector<std::int32_t> changed = normalised(piece);
      const bool same = changed == piece;
      const Span all{text[start].span.start, text[stop - 1].span.end};
      for (std::size_t k = 0; k < changed.size(); ++k)
        normal.push_back({changed[k], same ? text[start + k].span : all});
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

// ---- Files: SHA-256, protobuf, JSON, and what a model says of itself ----

inline std::string one_line(std::string_view text) {
  std::string line(text.substr(0, 300));
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  return line;
}

/// Whether a file is there, and of this kind.
inline bool is(const std::filesystem::path& file, std::filesystem::file_type kind) {
  std::error_code problem;
  return std::filesystem::status(file, problem).type() == kind;
}

/// A path as messages show it, in UTF-8: path::string() throws on Windows for what is not in its code page.
inline std::string shown(const std::filesystem::path& path) {
  const auto text = path.u8string();  // of char8_t in C++20
  return one_line(std::string(text.begin(), text.end()));
}

inline std::string read_file(const std::filesystem::path& file) {
  std::ifstream stream;
  if (is(file, std::filesystem::file_type::regular)) stream.open(file, std::ios::binary);  // a pipe would not even open
  const std::streamoff size = stream.is_open() ? stream.seekg(0, std::ios::end).tellg() : std::streampos(-1);
  if (size < 0 || size > 0x7FFFFFFF)  // protobuf, and so ONNX, ends there
    throw Error(shown(file) +
                ": missing, or cannot be read; expected a bundle made by `ohlol export`, or its model.onnx");
  std::string bytes(static_cast<std::size_t>(size), '\0');
  stream.seekg(0).read(bytes.data(), size);
  bytes.resize(static_cast<std::size_t>(stream.gcount()));
  return bytes;
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
    // protobuf leaves out the bits above, and would see another field than we do: a weight in another file, say.
    if (key >> 32 != 0) throw Error("the number of a field is too large");
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
  // The fields of a ModelProto, and of what is in it, that lead to tensors: of what, number, to what.
  static constexpr struct {
    char of;
    unsigned number;
    char to;
  } kLeads[] = {{'m', 7, 'g'},  {'m', 20, 'r'}, {'m', 25, 'f'}, {'r', 1, 'g'},  {'r', 2, 'g'},  {'f', 7, 'n'},
                {'f', 11, 'a'}, {'g', 1, 'n'},  {'g', 5, 't'},  {'g', 15, 's'}, {'n', 5, 'a'},  {'a', 5, 't'},
                {'a', 6, 'g'},  {'a', 10, 't'}, {'a', 11, 'g'}, {'a', 22, 's'}, {'a', 23, 's'}, {'s', 1, 't'},
                {'s', 2, 't'}};
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

/// Reads the JSON that metadata and manifests are. It is strict, so that no two readers take a text for two things;
/// U+D800 to U+DFFF must come as pairs.
class Json {
 public:
  explicit Json(std::string_view text) : text_(text) { skip(); }

  std::string string() {
    if (!take('"')) fail("expected a string");
    std::string found;
    while (!take('"')) {
      if (static_cast<unsigned char>(peek()) < 0x20) fail("a string is cut off, or holds a control character");
      if (!take('\\')) {
        found += text_[at_++];
      } else if (const auto which = std::string_view("\"\\/bfnrt").find(peek()); which != std::string_view::npos) {
        found += "\"\\/\b\f\n\r\t"[which], ++at_;
      } else {
        std::int32_t point = unit(), low = 0;
        if (within(point, 0xD800, 0xDBFF) && take('\\')) low = unit();
        if (within(low, 0xDC00, 0xDFFF))
          point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
        else if (within(point, 0xD800, 0xDFFF))
          fail("a lone surrogate");
        encode(point, found);
      }
    }
    const Characters characters = decode(found);
    if (encode(characters.begin(), characters.end()) != found) fail("no UTF-8");
    skip();
    return found;
  }

  std::vector<std::string> list() {
    std::vector<std::string> found;
    many('[', ']', [&] { found.push_back(string()); });
    return found;
  }

  /// Any value, as the text that all who mean the same value share: no spaces or escapes, names in their order.
  std::string value(int depth = 0) {
    if (depth > 32) fail("nested deeper than 32");
    if (peek() == '"') return quoted(string());
    std::string found;
    if (peek() == '{') {
      for (const auto& [name, its] : members(depth)) found += (found.empty() ? "" : ",") + quoted(name) + ":" + its;
      return "{" + found + "}";
    }
    if (peek() == '[') {
      many('[', ']', [&] { found += (found.empty() ? "" : ",") + value(depth + 1); });
      return "[" + found + "]";
    }
    const std::size_t size = (std::min)(text_.find_first_of(" \t\n\r,]}", at_), text_.size()) - at_;
    found = text_.substr(at_, size);
    if (found != "null" && found != "true" && found != "false") found = number(found);
    at_ += size;
    skip();
    return found;
  }

  /// The values of an object by their names.
  std::map<std::string, std::string> members(int depth = 0) {
    std::map<std::string, std::string> found;
    many('{', '}', [&] {
      const std::string name = string();
      if (!take(':')) fail("expected a colon");
      skip();
      if (!found.emplace(name, value(depth + 1)).second) fail("a name is there twice");
    });
    return found;
  }

  void end() const {
    if (at_ != text_.size()) fail("there is more after the value");
  }

 private:
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) { return at_ < text_.size() && text_[at_] == c ? ++at_, true : false; }
  void skip() {
    while (take(' ') || take('\t') || take('\n') || take('\r')) {
    }
  }
  [[noreturn]] void fail(const char* problem) const { throw Error(problem + (" at byte " + std::to_string(at_))); }

  static std::string quoted(const std::string& text) {
    std::string found = "\"";
    for (const char c : text)
      if (static_cast<unsigned char>(c) < 0x20)
        found += std::string("\\u00") + "01"[c >> 4] + "0123456789abcdef"[c & 15];
      else
        found += (c == '"' || c == '\\' ? "\\" : "") + std::string(1, c);
    return found + '"';
  }

  /// A number of JSON: a whole one as it stands, any other as float64 has it.
  std::string number(const std::string& text) const {
    std::size_t at = 0;
    const auto digits = [&] {
      const std::size_t first = at;
      while (at < text.size() && within(text[at], '0', '9')) ++at;
      return at - first;
    };
    if (text.substr(0, 1) == "-") ++at;
    const std::size_t first = at, size = digits();
    bool right = size > 0 && (size == 1 || text[first] != '0');
    const bool whole = at == text.size();
    if (at < text.size() && text[at] == '.') right = (++at, digits()) > 0 && right;
    if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
      if (++at < text.size() && (text[at] == '+' || text[at] == '-')) ++at;
      right = digits() > 0 && right;
    }
    if (!right || at != text.size() || (whole && text.size() > 20)) fail("expected a value");
    if (whole) return text;
    std::istringstream from(text);
    std::ostringstream to;
    from.imbue(std::locale::classic()), to.imbue(std::locale::classic());
    double read = 0;
    if (!(from >> read) || !std::isfinite(read)) fail("a number that is not finite");
    to.precision(17);
    to << std::scientific << read;
    return to.str();
  }

  template <class Item>
  void many(char begin, char end, Item item) {
    if (!take(begin)) fail("expected a list or an object");
    skip();
    if (!take(end)) {
      do skip(), item();
      while (take(','));
      if (!take(end)) fail("expected a comma");
    }
    skip();
  }

  std::int32_t unit() {
    std::int32_t found = 0;
    if (!take('u')) fail("no such escape");
    for (int k = 0; k < 4; ++k, ++at_) {
      const auto digit = std::string_view("0123456789abcdef0000000000ABCDEF").find(peek());
      if (digit == std::string_view::npos) fail("no such escape");
      found = found << 4 | static_cast<std::int32_t>(digit % 16);
    }
    return found;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

using Values = std::map<std::string, std::string>;  // JSON as `Json::value` gives it, by name

inline const std::string& take(const Values& values, const char* name) {
  const auto found = values.find(name);
  if (found == values.end()) throw Error(std::string("it has no ") + name);
  return found->second;
}

inline void check_versions(const Values& facts) {
  if (take(facts, "format") != "\"ohlol-bundle\"")
    throw Error("its format is " + one_line(take(facts, "format")) + ", so ohlol did not export it");
  for (const char* name : {"format_version", "contract_version"})
    if (take(facts, name) != "1")
      throw Error(std::string(name) + " is " + one_line(take(facts, name)) +
                  ", this ohlol.hpp knows 1 only; take the one of the ohlol that exported it (`ohlol embed cpp`)");
}

constexpr std::size_t kUnknown = 1, kReserved = 2;  // ids; those of characters come after

/// What an .onnx file says in its metadata, as docs/format.md of ohlol has it.
struct Facts {
  Values all;  // by the name after "ohlol."
  bool both_ways = false;
  std::string task, form, scheme;
  std::vector<std::int32_t> characters;
  std::unordered_map<std::int32_t, std::size_t> ids;
  std::vector<std::string> labels;
  std::size_t classes = 0;

  std::size_t id(std::int32_t point) const {
    const auto found = ids.find(point);
    return found == ids.end() ? kUnknown : found->second;
  }

  /// Of a model's bytes. Throws Error where they are not what was exported, or not by ohlol.
  explicit Facts(std::string_view model) {
    Sha256 digest;
    for_fields(model, [&](const Field& field) {
      if (field.number != 14) return digest.update(field.whole);
      std::string_view name, value;
      for_fields(field.content, [&](const Field& part) { (part.number == 1 ? name : value) = part.content; });
      if (name.substr(0, 6) == "ohlol." && !all.emplace(name.substr(6), value).second)
        throw Error("a name is there twice in its metadata");
    });
    if (all.empty()) throw Error("ohlol did not export it");
    for (auto& [name, text] : all) {
      Json json(text);
      std::string value = json.value();
      json.end();
      text.swap(value);
    }
    // Files of the first versions have no digest.
    if (const auto said = all.find("sha256"); said != all.end() && Json(said->second).string() != digest.hex())
      throw Error("its sha256 is not the one in its metadata");
    if (reads_other_files(model)) throw Error("a weight of it stands in another file, which is refused");
    check_versions(all);
    task = Json(take(all, "task")).string();
    labels = Json(take(all, "labels")).list();
    if (take(all, "label_scheme") != "null") scheme = Json(take(all, "label_scheme")).string();
    both_ways = take(Json(take(all, "network")).members(), "bidirectional") == "true";
    const Values alphabet = Json(take(all, "alphabet")).members();
    form = Json(take(alphabet, "normalisation")).string();
    for (const Character& c : decode(Json(take(alphabet, "characters")).string())) {
      if (c.point == 0 || !ids.emplace(c.point, kReserved + ids.size()).second)
        throw Error("its alphabet has a character twice, or NUL");
      characters.push_back(c.point);
    }
    std::vector<std::string> sorted = labels;
    std::sort(sorted.begin(), sorted.end());
    const bool once = std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
    const bool marks = task == "tag" && sorted == std::vector<std::string>{"B", "I", "O", "S"};
    if ((task != "tag" && task != "classify" && task != "lm") || !once || (task == "lm") != labels.empty() ||
        !(scheme.empty() || (scheme == "words" && marks)) ||
        (form != "NFC" && form != "NFD" && form != "NFKC" && form != "NFKD" && form != "none"))
      throw Error("its task, labels, label_scheme or normalisation are not those of a model");
    classes = task == "lm" ? characters.size() + kReserved : labels.size();
  }
};

/// A bundle's folder: files are read by its manifest, each checked before it is used. What runs is what was checked.
class Bundle {
 public:
  explicit Bundle(std::filesystem::path folder) : folder_(std::move(folder)) {
    const std::filesystem::path file = folder_ / "manifest.json";
    const auto regular = std::filesystem::file_type::regular;
    if (!is(file, regular))
      throw Error(shown(folder_) + ": has no manifest.json, so it is not a bundle; " +
                  (is(folder_ / "recipe.toml", regular)
                       ? "it looks like a run: make a bundle of it with `ohlol export " + shown(folder_) + "`"
                       : "expected one made by `ohlol export`"));
    const std::string text = read_file(file);
    try {
      Json json(text);
      facts_ = json.members();
      json.end();
      check_versions(facts_);
      files_ = Json(take(facts_, "files")).members();
    } catch (const Error& error) {
      throw Error(shown(file) + ": cannot read it: " + error.what() + "; copy or export the bundle again");
    }
  }

  std::string where(const std::string& name) const { return shown(folder_ / name); }
  bool has(const std::string& name) const { return files_.count(name) != 0; }

  /// The bytes of a file, which are those that the manifest means.
  std::string read(const std::string& name) const {
    const auto refuse = [&](const std::string& problem) {
      throw Error(where(name) + ": " + problem + "; copy or export the bundle again");
    };
    if (!has(name)) refuse("the manifest does not list it");
    const auto path = folder_ / name;
    std::error_code problem;
    const auto root = std::filesystem::weakly_canonical(folder_, problem);
    const auto real = std::filesystem::weakly_canonical(path, problem);
    if (problem || std::mismatch(root.begin(), root.end(), real.begin(), real.end()).first != root.end())
      refuse("a link that leaves the bundle");
    std::string size, digest;
    try {
      const Values entry = Json(files_.at(name)).members();
      size = take(entry, "bytes"), digest = Json(take(entry, "sha256")).string();
    } catch (const Error&) {
      refuse("the manifest has no sha256 and bytes of it");
    }
    const auto found = std::filesystem::file_size(path, problem);
    if (!problem && std::to_string(found) != size)
      refuse("damaged or changed: it has " + std::to_string(found) + " bytes, the manifest says " + one_line(size));
    std::string bytes = read_file(path);
    Sha256 sum;
    sum.update(bytes);
    if (const std::string own = sum.hex(); own != digest)
      refuse("damaged or changed: its sha256 is " + own.substr(0, 12) + "..., the manifest says " +
             one_line(digest.substr(0, 12)) + "...");
    return bytes;
  }

  /// Throws where an .onnx file of the bundle says anything else than the manifest does.
  void check(const Facts& facts, bool streams) const {
    for (const auto& [name, value] : facts.all) {
      if (name == "sha256" || (streams && (name == "inputs" || name == "outputs"))) continue;  // the file's own
      if (const auto ours = facts_.find(name); ours == facts_.end() || ours->second != value)
        throw Error("its " + one_line(name) + " differs from that of manifest.json");
    }
  }

 private:
  std::filesystem::path folder_;
  Values facts_, files_;
};

// ---- Running a file ----

inline Ort::Env& environment() {
  static Ort::Env env = [] {
#ifdef _WIN32
    if (std::getenv("ORT_DISABLE_TELEMETRY") == nullptr) _putenv_s("ORT_DISABLE_TELEMETRY", "1");
#else
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // stays as it is where it is set
#endif
    if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr)
      throw Error(std::string("ONNX Runtime's library is ") + OrtGetApiBase()->GetVersionString() +
                  ", older than the headers this was built with (API version " + std::to_string(ORT_API_VERSION) + ")");
    return Ort::Env(ORT_LOGGING_LEVEL_FATAL, "ohlol");
  }();
  return env;
}

/// What the runtime is asked: `points` (B, T), the rows padded, and their lengths or, of stream.onnx, the state before.
struct Batch {
  std::size_t B = 0, T = 0;
  std::vector<std::int32_t> points, lengths;
  std::vector<float> state;  // (S, B, H)
};

/// An open file, and what it says of itself. It holds no state, so several threads may run it at once.
class File {
 public:
  /// A file of a bundle.
  File(const Bundle& bundle, const std::string& name, int threads)
      : File(bundle.where(name), bundle.read(name), name == "stream.onnx", threads, &bundle) {}

  /// A single model.onnx.
  File(const std::filesystem::path& path, int threads) : File(shown(path), read_file(path), false, threads, nullptr) {}

  /// The state before a text.
  std::vector<float> beginning() const { return std::vector<float>(static_cast<std::size_t>(shape_[0] * shape_[2])); }

  /// The outputs `names`, each of the type and shape of the contract.
  std::vector<Ort::Value> run(Batch& batch, const std::vector<const char*>& names) const {
    return guarded("run", [&] {
      const auto B = static_cast<std::int64_t>(batch.B), T = static_cast<std::int64_t>(batch.T);
      const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
      const auto input = [&](auto& values, std::vector<std::int64_t> shape) {
        return Ort::Value::CreateTensor(memory, values.data(), values.size(), shape.data(), shape.size());
      };
      std::vector<std::int64_t> after;  // the shape of a state
      if (streams_) after = {shape_[0], B, shape_[2]};
      std::array<Ort::Value, 2> inputs{input(batch.points, {B, T}),
                                       streams_ ? input(batch.state, after) : input(batch.lengths, {B})};
      const std::array<const char*, 2> asks{"codepoints", streams_ ? "state" : "lengths"};
      std::vector<Ort::Value> found =
          session_.Run(Ort::RunOptions{nullptr}, asks.data(), inputs.data(), 2, names.data(), names.size());
      for (std::size_t k = 0; k < names.size(); ++k) {
        const std::string name = names[k];
        std::vector<std::int64_t> shape = name == "next_state" ? after : std::vector<std::int64_t>{B};
        if (name != "next_state" && facts.task != "classify") shape.push_back(T);
        if (name != "next_state" && name != "label_ids") shape.push_back(static_cast<std::int64_t>(facts.classes));
        const auto info = found[k].GetTensorTypeAndShapeInfo();
        const bool ids = info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        const bool numbers = info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        if (!(name == "label_ids" ? ids : numbers) || info.GetShape() != shape)
          throw Error("`" + name + "` is not that of the contract");
      }
      return found;
    });
  }

 private:
  File(std::string where, std::string bytes, bool streams, int threads, const Bundle* bundle)
      : environment_(environment()),
        where_(std::move(where)),
        streams_(streams),
        bytes_(std::move(bytes)),
        facts(guarded("read", [&] { return Facts(bytes_); })) {
    if (threads < 1 || threads > 1024)
      throw std::invalid_argument("threads is " + std::to_string(threads) + ", expected 1 to 1024");
    if (bundle != nullptr) guarded("read", [&] { bundle->check(facts, streams); });
    guarded("open", [&] {
      Ort::SessionOptions options;
      options.SetIntraOpNumThreads(threads);
      options.SetInterOpNumThreads(1);
      options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);  // errors come as exceptions
      options.AddConfigEntry("session.intra_op.allow_spinning", "0");
      session_ = Ort::Session(environment_, bytes_.data(), bytes_.size(), options);
      std::string inputs;
      for (std::size_t k = 0; k < session_.GetInputCount(); ++k)
        inputs += std::string(" ") + session_.GetInputNameAllocated(k, Ort::AllocatorWithDefaultOptions()).get();
      if (inputs != (streams ? " codepoints state" : " codepoints lengths"))
        throw Error("it takes" + one_line(inputs) +
                    ", so it is another file of a bundle; load model.onnx or the bundle");
      if (streams) shape_ = session_.GetInputTypeInfo(1).GetTensorTypeAndShapeInfo().GetShape();
      constexpr std::int64_t kMost = 1 << 20;
      if (streams && (shape_.size() != 3 || shape_[0] < 1 || shape_[2] < 1 || shape_[0] > kMost || shape_[2] > kMost))
        throw Error("`state` is not (states, batch, hidden)");
    });
    std::string().swap(bytes_);  // the session has its own
  }

  template <class Do>
  auto guarded(const char* what, Do run) const -> decltype(run()) {
    std::string problem;
    try {
      return run();
    } catch (const Ort::Exception& error) {
      problem = std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() + ": " + one_line(error.what());
    } catch (const Error& error) {
      problem = error.what();
    }
    throw Error(where_ + ": cannot " + what + " it: " + problem + "; copy or export it again");
  }

  Ort::Env& environment_;  // first: it throws before anything of ONNX Runtime's is made, which could not be destroyed
  std::string where_;
  bool streams_;
  std::string bytes_;
  mutable Ort::Session session_{nullptr};  // safe to run from several threads, though that is not const
  std::vector<std::int64_t> shape_;        // of the state

 public:
  const Facts facts;
};

// ---- What a task makes of a file's outputs ----

/// -ln p of an id by the logits (V,), in float64.
inline double nats(const float* logits, std::size_t V, std::size_t id) {
  const double highest = *std::max_element(logits, logits + V);
  double total = 0;
  for (std::size_t k = 0; k < V; ++k) total += std::exp(logits[k] - highest);
  return std::log(total) + highest - logits[id];
}

/// The places of `values`, sorted so that `before` holds of their values; equals stay in their order.
template <class Values, class Before>
std::vector<std::size_t> sorted(const Values& values, std::size_t first, Before before) {
  std::vector<std::size_t> order(values.size() - first);
  std::iota(order.begin(), order.end(), first);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return before(values[a], values[b]); });
  return order;
}

/// The answer for one text, to which the outputs are told part by part.
struct Answer {
  std::vector<std::size_t> ids;  // tag: label ids
  std::vector<float> numbers;    // tag: probabilities (T, C); of the text so far: classify: probabilities, lm: logits
  double sum = 0;                // lm: of -ln p of `scored` characters
  std::size_t scored = 0;

  /// `count` characters, whose outputs are those of the row `row` of T.
  void add(const Facts& facts, const std::int32_t* points, std::size_t count, const std::vector<Ort::Value>& outputs,
           std::size_t row, std::size_t T) {
    const std::size_t C = facts.classes;
    const std::size_t size = facts.task == "classify" ? C : count * C;
    const float* values = outputs[0].GetTensorData<float>() + row * C * (facts.task == "classify" ? 1 : T);
    if (!std::all_of(values, values + size, [](float value) { return std::isfinite(value); }))
      throw Error("the model gives numbers that are none; export it again");
    if (facts.task == "classify") {
      numbers.assign(values, values + C);
    } else if (facts.task == "tag") {
      const std::int32_t* found = outputs[1].GetTensorData<std::int32_t>() + row * T;
      if (std::any_of(found, found + count, [&](auto id) { return id < 0 || static_cast<std::size_t>(id) >= C; }))
        throw Error("the model gives a label that it does not have; export it again");
      ids.insert(ids.end(), found, found + count);
      numbers.insert(numbers.end(), values, values + count * C);
    } else {
      const float* before = numbers.empty() ? nullptr : numbers.data();
      for (std::size_t t = 0; t < count; ++t, before = values + (t - 1) * C)
        if (before != nullptr) sum += nats(before, C, facts.id(points[t])), ++scored;
      numbers.assign(values + (count - 1) * C, values + count * C);
    }
  }

  void to(const Facts& facts, const Characters& text, Tagged& result) const {
    std::vector<std::pair<std::size_t, std::size_t>> words, sentences;  // [first, end) characters
    bool inside = false;
    for (std::size_t t = 0; t < text.size(); ++t) {
      const std::string& label = facts.labels[ids[t]];
      result.labels.push_back({text[t].span, static_cast<char32_t>(text[t].point), label, ids[t],
                               numbers[t * facts.classes + ids[t]], facts.id(text[t].point) != kUnknown});
      if (facts.scheme.empty()) continue;
      const bool was_inside = std::exchange(inside, label != "O");
      if (label == "B" || label == "S" || (inside && !was_inside)) {
        if (label == "S" || sentences.empty()) sentences.emplace_back(t, t + 1);
        words.emplace_back(t, t + 1);
      }
      if (inside) words.back().second = sentences.back().second = t + 1;
    }
    const auto spell = [&](const auto& places, std::vector<Word>& spelled) {
      for (const auto& [first, end] : places)
        spelled.push_back({{text[first].span.start, text[end - 1].span.end}, encode(&text[first], &text[end - 1] + 1)});
    };
    spell(words, result.words);
    spell(sentences, result.sentences);
    result.probabilities = numbers;
  }

  void to(const Facts& facts, const Characters&, Classified& result) const {
    for (const std::size_t k : sorted(numbers, 0, std::greater<>()))
      result.probabilities.emplace_back(facts.labels[k], numbers[k]);
    if (!numbers.empty()) std::tie(result.label, result.probability) = result.probabilities[0];
  }

  void to(const Facts& facts, const Characters&, Scored& result) const {
    if (numbers.empty()) return;
    const auto best = static_cast<std::size_t>(std::max_element(numbers.begin(), numbers.end()) - numbers.begin());
    if (best >= kReserved) encode(facts.characters[best - kReserved], result.next.emplace());
    result.probability = std::exp(-nats(numbers.data(), numbers.size(), best));
    if (scored > 0) result.nats_per_character = sum / static_cast<double>(scored);
  }

  template <class R>
  R result(const Facts& facts, const Characters& text) const {
    R made;
    made.text = encode(text.begin(), text.end());
    to(facts, text, made);
    return made;
  }
};

/// What a model and its streams share.
class Core {
 public:
  Core(const std::filesystem::path& path, const Options& options)
      : threads_(options.threads),
        bundle_(is(path, std::filesystem::file_type::directory) ? std::optional<Bundle>(path) : std::nullopt),
        model_(bundle_ ? File(*bundle_, "model.onnx", threads_) : File(path, threads_)),
        normaliser(facts().form, options.normalise) {}

  const Facts& facts() const { return model_.facts; }

  const File& stream() const {
    const std::lock_guard<std::mutex> alone(mutex_);
    if (stream_) return *stream_;
    if (facts().both_ways)
      throw Error("the network reads both ways, so its answers need the end of the text; give it whole texts");
    if (!has_stream())
      throw Error(
          "no stream.onnx: load the folder of a bundle that has one (`ohlol export RUN --formats onnx,stream`), or "
          "give it whole texts");
    stream_ = std::make_unique<File>(*bundle_, "stream.onnx", threads_);
    return *stream_;
  }

  void need(const std::string& task, const std::string& call) const {
    const std::string& ours = facts().task;
    if (ours == task) return;
    throw Error("this model is for " + ours + " and has no " + call + ": call " +
                (ours == "tag"        ? "tag(text) or stream<ohlol::Tagged>()"
                 : ours == "classify" ? "classify(text) or stream<ohlol::Classified>()"
                                      : "score(text), stream<ohlol::Scored>() or generate(prompt)"));
  }

  /// Tell `answer` the outputs for `text`, in parts; `state` is that before it, and becomes that after it.
  void read(const Characters& text, std::vector<float>& state, Answer& answer) const {
    const File& file = stream();
    std::vector<const char*> names = asks();
    names.push_back("next_state");
    for (std::size_t start = 0, end; start < text.size(); start = end) {
      end = (std::min)(text.size(), start + most());
      Batch part{1, end - start, {}, {}, state};
      for (std::size_t k = start; k < end; ++k) part.points.push_back(text[k].point);
      const auto outputs = file.run(part, names);
      answer.add(facts(), part.points.data(), part.T, outputs, 0, part.T);
      std::copy_n(outputs.back().GetTensorData<float>(), state.size(), state.begin());
    }
  }

  /// Whole texts, those of like length together; long ones by stream.onnx, where there is one.
  template <class R>
  std::vector<R> answer(const std::vector<Characters>& texts) const {
    std::vector<Answer> answers(texts.size());
    std::vector<std::size_t> order =
        sorted(texts, 0, [](const Characters& a, const Characters& b) { return a.size() > b.size(); });
    while (!order.empty() && texts[order.back()].empty()) order.pop_back();  // no empty text gets to the model
    for (std::size_t first = 0, end; first < order.size(); first = end) {
      const std::size_t T = texts[order[first]].size();
      end = (std::min)(order.size(), first + (std::max<std::size_t>)(1, most() / T));
      if (T > most() && has_stream()) {
        std::vector<float> state = stream().beginning();
        read(texts[order[first]], state, answers[order[first]]);
        continue;
      }
      Batch batch{end - first, T, {}, {}, {}};
      for (std::size_t k = first; k < end; ++k) {
        for (const Character& c : texts[order[k]]) batch.points.push_back(c.point);
        batch.points.resize((k - first + 1) * T);
        batch.lengths.push_back(static_cast<std::int32_t>(texts[order[k]].size()));
      }
      const auto outputs = model_.run(batch, asks());
      for (std::size_t k = first; k < end; ++k)
        answers[order[k]].add(facts(), &batch.points[(k - first) * T], texts[order[k]].size(), outputs, k - first, T);
    }
    std::vector<R> results;
    for (std::size_t k = 0; k < texts.size(); ++k) results.push_back(answers[k].result<R>(facts(), texts[k]));
    return results;
  }

 private:
  std::vector<const char*> asks() const {
    if (facts().task == "tag") return {"probabilities", "label_ids"};
    return {facts().task == "lm" ? "logits" : "probabilities"};
  }

  bool has_stream() const { return bundle_ && bundle_->has("stream.onnx"); }

  /// Characters in one call, padding included.
  std::size_t most() const {
    return (std::min<std::size_t>)(8192, (std::max<std::size_t>)(1, (1 << 22) / facts().classes));
  }

  int threads_;
  std::optional<Bundle> bundle_;  // none where a file was given
  File model_;
  mutable std::mutex mutex_;
  mutable std::unique_ptr<File> stream_;  // opened when it is first needed

 public:
  const Normaliser normaliser;
};

/// What answers with an R: the task, its call, and R's own name.
template <class R>
constexpr std::array<const char*, 3> kAnswers{"lm", "score(text)", "Scored"};
template <>
inline constexpr std::array<const char*, 3> kAnswers<Tagged>{"tag", "tag(text)", "Tagged"};
template <>
inline constexpr std::array<const char*, 3> kAnswers<Classified>{"classify", "classify(text)", "Classified"};

}  // namespace detail

// ---- Streams and models ----

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

  /// The answer for the next piece. What a later one could still change is held back: the last character with its
  /// marks, and bytes of a character that is not whole. Tagged is about the piece's characters (a word that is cut
  /// comes as two), Classified about the text so far; Scored scores the piece's characters, each given all before it,
  /// and says what follows the text so far.
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
    std::string bytes = unread_ + std::string(piece);
    detail::Characters held, text = held_;
    const std::size_t read = detail::decode(bytes, !end, offset_, text);
    const std::size_t ready = end ? text.size() : core_->normaliser.ready(text);
    held.assign(text.begin() + static_cast<std::ptrdiff_t>(ready), text.end());
    text.resize(ready);
    text = core_->normaliser(text);
    std::vector<float> state = state_;
    detail::Answer answer;
    answer.numbers = last_;
    core_->read(text, state, answer);
    R made = answer.template result<R>(core_->facts(), text);
    bytes.erase(0, read);
    // Nothing below throws.
    if (!std::is_same_v<R, Tagged>) last_.swap(answer.numbers);
    unread_.swap(bytes), held_.swap(held), state_.swap(state);
    offset_ += read, characters_ += text.size();
    return made;
  }

  std::shared_ptr<const detail::Core> core_;
  std::vector<float> state_, last_;  // of the network; what the last character brought
  std::string unread_;               // bytes of a character that is not whole
  detail::Characters held_;          // not yet normalised
  std::size_t offset_ = 0, characters_ = 0;
};

/// A bundle (its folder), or a single model.onnx. Copies share what is loaded.
class Model {
 public:
  /// Throws Error, which names the file, where it is not one of ours, damaged, or of another contract version.
  explicit Model(const std::filesystem::path& path, const Options& options = {})
      : core_(std::make_shared<const detail::Core>(path, options)) {}
  Model(const Model&) = default;  // and to move is to copy: what was moved from answers still
  Model& operator=(const Model&) = default;

  const std::string& task() const { return core_->facts().task; }                   // "tag", "classify" or "lm"
  const std::vector<std::string>& labels() const { return core_->facts().labels; }  // in the order of their ids
  const std::string& label_scheme() const { return core_->facts().scheme; }         // "words", or ""
  const std::string& normalisation() const { return core_->facts().form; }          // "NFC" and the like, or "none"

  /// Whether the model knows a character of a normalised text.
  bool knows(char32_t character) const {
    return core_->facts().id(static_cast<std::int32_t>(character)) != detail::kUnknown;
  }

  std::string normalise(std::string_view text) const {
    const detail::Characters normal = read(text);
    return detail::encode(normal.begin(), normal.end());
  }

  /// Several texts share calls. An empty list of them throws std::invalid_argument.
  Tagged tag(std::string_view text) const { return one<Tagged>(text); }
  std::vector<Tagged> tag(const std::vector<std::string>& texts) const { return many<Tagged>(texts); }
  Classified classify(std::string_view text) const { return one<Classified>(text); }
  std::vector<Classified> classify(const std::vector<std::string>& texts) const { return many<Classified>(texts); }
  Scored score(std::string_view text) const { return one<Scored>(text); }
  std::vector<Scored> score(const std::vector<std::string>& texts) const { return many<Scored>(texts); }

  /// A new text in pieces: `auto stream = model.stream<ohlol::Tagged>();`. Needs stream.onnx.
  template <class R>
  Stream<R> stream() const {
    const auto& [task, call, name] = detail::kAnswers<R>;
    core_->need(task, std::string("stream<ohlol::") + name + ">()");
    return Stream<R>(core_);
  }

  /// Text that may follow `prompt`, of task lm; without one, what follows a line end. Needs stream.onnx.
  std::string generate(std::string_view prompt = {}, const Sampling& sampling = {}) const;

 private:
  detail::Characters read(std::string_view text) const { return core_->normaliser(detail::decode(text)); }

  template <class R>
  R one(std::string_view text) const {
    core_->need(detail::kAnswers<R>[0], detail::kAnswers<R>[1]);
    return std::move(core_->answer<R>(std::vector<detail::Characters>(1, read(text)))[0]);
  }

  template <class R>
  std::vector<R> many(const std::vector<std::string>& texts) const {
    core_->need(detail::kAnswers<R>[0], detail::kAnswers<R>[1]);
    if (texts.empty()) throw std::invalid_argument("an empty list of texts; give at least one");
    std::vector<detail::Characters> normal;
    for (const std::string& text : texts) normal.push_back(read(text));
    return core_->answer<R>(normal);
  }

  std::shared_ptr<const detail::Core> core_;
};

// ---- Text that is made ----

namespace detail {

template <class Number>
void need(bool right, const char* name, Number given, const char* expected) {
  if (right) return;
  std::ostringstream line;
  line.imbue(std::locale::classic());
  line << name << given << ", expected " << expected;
  throw std::invalid_argument(line.str());
}

inline void check(const Sampling& s) {
  const double t = s.temperature, p = s.top_p.value_or(1);
  need(t >= 0 && t < std::numeric_limits<double>::infinity(), "temperature is ", t, "a number from 0 up");
  need(s.top_k != std::size_t{0}, "top_k is ", 0, "a whole number from 1 up");
  need(p > 0 && p <= 1, "top_p is ", p, "a number above 0 and at most 1");
  if (std::count(s.stop.begin(), s.stop.end(), "") != 0)
    throw std::invalid_argument("a stop string is empty, expected one character at least");
}

/// The id of a character by the `logits` (V,) and a number in [0, 1).
inline std::size_t draw(const std::vector<float>& logits, const Sampling& s, double random) {
  const std::size_t V = logits.size();
  const auto best = std::max_element(logits.begin() + kReserved, logits.end());
  if (s.temperature == 0) return static_cast<std::size_t>(best - logits.begin());
  std::vector<double> p(V), total(V);
  for (std::size_t k = kReserved; k < V; ++k) p[k] = std::exp((static_cast<double>(logits[k]) - *best) / s.temperature);
  if (s.top_k || s.top_p) {
    std::vector<std::size_t> order = sorted(logits, kReserved, std::greater<>());
    order.resize((std::min)(order.size(), s.top_k.value_or(V)));
    std::vector<double> kept(V);
    double all = 0, reached = 0;
    for (const std::size_t k : order) all += p[k];
    for (std::size_t n = 0; n < order.size() && (n == 0 || !s.top_p || reached / all < *s.top_p); ++n)
      reached += kept[order[n]] = p[order[n]];
    p = kept;
  }
  std::partial_sum(p.begin(), p.end(), total.begin());
  auto found = std::upper_bound(total.begin(), total.end(), random * total.back());
  // The product may be rounded up to all of it, which is the last character's that can be.
  if (found == total.end()) found = std::lower_bound(total.begin(), total.end(), total.back());
  return static_cast<std::size_t>(found - total.begin());
}

/// How many bytes at the end of `text` are the beginning of `stop`.
inline std::size_t begun(const std::string& stop, const std::string& text) {
  std::size_t size = (std::min)(stop.size() - 1, text.size());
  while (size > 0 && text.compare(text.size() - size, size, stop, 0, size) != 0) --size;
  return size;
}

}  // namespace detail

inline std::string Model::generate(std::string_view prompt, const Sampling& sampling) const {
  core_->need("lm", "generate(prompt)");
  detail::check(sampling);
  const detail::Facts& facts = core_->facts();
  if (facts.characters.empty()) throw Error("the model's alphabet is empty, so there is nothing to make");
  auto random = sampling.random;
  if (!random)
    random = [engine = std::mt19937_64(std::random_device()())]() mutable {
      return static_cast<double>(engine() >> 11) / 9007199254740992.0;  // 2^53
    };
  detail::Characters text = read(prompt);
  if (text.empty() && knows(U'\n')) text = detail::decode("\n");
  std::vector<float> state = core_->stream().beginning();
  detail::Answer answer;
  answer.numbers.assign(facts.classes, 0);  // with neither a prompt nor a line end, all characters are equally likely
  std::string made, held;
  const auto give = [&](std::size_t size) {
    const std::string sure = held.substr(0, size);
    held.erase(0, size);
    made += sure;
    return sure.empty() || !sampling.on_text || sampling.on_text(sure);
  };
  for (std::size_t k = 0; k < sampling.length; ++k) {
    core_->read(text, state, answer);
    const double drawn = random();
    detail::need(drawn >= 0 && drawn < 1, "Sampling::random gave ", drawn, "a number from 0 to below 1");
    text.assign(1, {facts.characters[detail::draw(answer.numbers, sampling, drawn) - detail::kReserved], {}});
    detail::encode(text[0].point, held);
    std::size_t found = std::string::npos, open = 0;
    for (const std::string& stop : sampling.stop) {
      found = (std::min)(found, held.find(stop));
      open = (std::max)(open, detail::begun(stop, held));
    }
    if (!give(found != std::string::npos ? found : held.size() - open) || found != std::string::npos) return made;
  }
  give(held.size());
  return made;
}

}  // namespace ohlol
