// ohlol_verify.hpp: the proof of a bundle replayed where it landed, by this machine's build of ONNX Runtime.
//
//   for (const auto& row : ohlol::verify("BUNDLE").rows) ...
//
// An app that only answers texts needs ohlol.hpp alone; this one is for its tests, or for its first start.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ohlol.hpp"

namespace ohlol {

/// How a file of a bundle answered one case of the bundle's test data here.
struct Checked {
  std::string file, test;
  double max_error = 0;
  std::size_t labels_differing = 0;  // ties within the tolerance aside
  bool passed = false;
};

struct Proof {
  bool passed = false;
  std::vector<Checked> rows;
};

namespace detail {

/// Numbers of test data: an ONNX TensorProto with raw_data, of this name and shape. An empty shape is filled in.
template <class T>
std::vector<T> tensor(const Bundle& bundle, const std::string& file, std::string_view name,
                      std::vector<std::size_t>& shape) {
  const std::string bytes = bundle.read(file);
  std::vector<std::size_t> found;
  std::string_view called, raw;
  std::uint64_t type = 0;
  const auto read = [&](const Field& field) {
    if (field.number == 1 && field.content.empty()) found.push_back(static_cast<std::size_t>(field.value));
    for (std::size_t at = 0; field.number == 1 && at < field.content.size();)  // all in one field
      found.push_back(static_cast<std::size_t>(varint(field.content, at)));
    if (field.number == 2) type = field.value;
    if (field.number == 8) called = field.content;
    if (field.number == 9) raw = field.content;
  };
  try {
    for_fields(bytes, read);
  } catch (const Error& error) {
    throw Error(bundle.where(file) + ": " + error.what() + "; export it again");
  }
  if (shape.empty()) shape = found;
  bool right = called == name && found == shape && !found.empty() && type == (std::is_same_v<T, float> ? 1u : 6u);
  std::size_t size = sizeof(T);
  for (const std::size_t axis : found) {
    right = right && axis >= 1 && axis <= raw.size();
    size = right ? size * axis : size;  // of two numbers below 2^31
    right = right && size <= raw.size();
  }
  std::vector<T> values(right && size == raw.size() ? raw.size() / sizeof(T) : 0);
  if (!values.empty()) std::memcpy(values.data(), raw.data(), raw.size());
  // What is expected must be finite: any answer is as near to infinity as another.
  if (values.empty() || !std::all_of(values.begin(), values.end(), [](T v) { return std::isfinite(double(v)); }))
    throw Error(bundle.where(file) + ": is not `" + std::string(name) + "` as the contract has it; export it again");
  return values;
}

/// The outputs for a batch: logits and probabilities (B, T, C), label_ids (B, T); of `classify` without T.
struct Outputs {
  std::vector<float> logits, probabilities;
  std::vector<std::int32_t> label_ids;
};

inline Outputs replay(const File& file, Batch& batch, bool streams) {
  const Facts& facts = file.facts;
  const std::size_t B = batch.B, T = batch.T, C = facts.classes, places = facts.task == "classify" ? B : B * T;
  const bool labels = facts.task != "lm";
  Outputs all{std::vector<float>(places * C), std::vector<float>(places * C), {}};
  all.label_ids.resize(labels ? places : 0, -1);
  std::vector<const char*> names{"logits", "probabilities"};
  if (labels) names.push_back("label_ids");
  const auto keep = [&](const std::vector<Ort::Value>& found, std::size_t first, std::size_t count) {
    std::copy_n(found[0].GetTensorData<float>(), count * C, &all.logits[first * C]);
    std::copy_n(found[1].GetTensorData<float>(), count * C, &all.probabilities[first * C]);
    if (labels) std::copy_n(found[2].GetTensorData<std::int32_t>(), count, &all.label_ids[first]);
  };
  if (!streams) {
    keep(file.run(batch, names), 0, places);
    return all;
  }
  names.push_back("next_state");
  for (std::size_t row = 0; row < B; ++row) {  // in pieces of 1 to 11 characters, the state carried
    Batch piece{1, 0, {}, {}, file.beginning()};
    const auto length = static_cast<std::size_t>(batch.lengths[row]);
    for (std::size_t start = 0; start < length; start += piece.T) {
      piece.T = (std::min)(length - start, 1 + (7 * start + row) % 11);
      const std::int32_t* points = &batch.points[row * T + start];
      piece.points.assign(points, points + piece.T);
      const auto found = file.run(piece, names);
      if (facts.task == "classify")
        keep(found, row, 1);
      else
        keep(found, row * T + start, piece.T);
      std::copy_n(found.back().GetTensorData<float>(), piece.state.size(), piece.state.begin());
    }
  }
  return all;
}

/// By the rule of ohlol's own proof: a number may be off by tolerance * (1 + the largest of its answer), and labels
/// must be equal but for one whose logit is as near to the best as two such errors can bring it.
inline void compare(const Outputs& found, const Outputs& expected, std::size_t C, double tolerance, Checked& row) {
  const auto allowed = [&](const std::vector<float>& values, std::size_t answer) {
    double most = 0;
    for (std::size_t k = answer * C; k < (answer + 1) * C; ++k) most = (std::max)(most, std::abs(double(values[k])));
    return tolerance * (1 + most);
  };
  row.passed = true;
  for (const auto numbers : {&Outputs::logits, &Outputs::probabilities})
    for (std::size_t k = 0; k < (expected.*numbers).size(); ++k) {
      const double error = std::abs(double((found.*numbers)[k]) - double((expected.*numbers)[k]));
      if (!(error <= row.max_error)) row.max_error = error;
      row.passed = row.passed && error <= allowed(expected.*numbers, k / C);  // NaN never does
    }
  for (std::size_t k = 0; k < expected.label_ids.size(); ++k) {
    const std::int32_t have = found.label_ids[k], want = expected.label_ids[k];
    const float* logits = &expected.logits[k * C];
    const auto behind = [&] { return double(*std::max_element(logits, logits + C)) - double(logits[have]); };
    const bool possible = want >= 0 && have >= 0 && static_cast<std::size_t>(have) < C;
    if (have != want && !(possible && behind() <= 2 * allowed(expected.logits, k))) ++row.labels_differing;
  }
  row.passed = row.passed && row.labels_differing == 0;
}

}  // namespace detail

/// Run every .onnx file of a bundle's folder but text.onnx, which takes strings, on the bundle's own test data: what
/// PyTorch answered, in float64, when it was exported. Throws Error where a file is damaged or there is no test data.
inline Proof verify(const std::filesystem::path& folder) {
  using namespace detail;
  struct {
    const char *name, *outputs;
    double tolerance;
  } const files[] = {{"model.onnx", "output_", 1e-5},
                     {"model.batch.onnx", "output_", 1e-5},
                     {"stream.onnx", "output_", 1e-5},
                     {"model.fp16.onnx", "fp16_output_", 1e-5},
                     {"model.int8.onnx", "int8_output_", 0.05}};
  const Bundle bundle(folder);
  Proof proof{true, {}};
  for (const auto& each : files) {
    const std::string name = each.name;
    if (name != "model.onnx" && !bundle.has(name)) continue;
    const bool streams = name == "stream.onnx";
    const File file(bundle, name, 1);
    for (std::size_t number = 0;; ++number) {
      const std::string test = "test_data_set_" + std::to_string(number);
      const auto output = [&](int k) { return test + "/" + each.outputs + std::to_string(k) + ".pb"; };
      if (number > 0 && !bundle.has(output(0))) break;
      std::vector<std::size_t> shape, rows;
      Batch batch;
      batch.points = tensor<std::int32_t>(bundle, test + "/input_0.pb", "codepoints", shape);
      batch.lengths = tensor<std::int32_t>(bundle, test + "/input_1.pb", "lengths", rows);
      if (shape.size() != 2 || rows != std::vector<std::size_t>{shape[0]})
        throw Error(bundle.where(test) + ": its inputs are no batch; export it again");
      batch.B = shape[0], batch.T = shape[1];
      for (const std::int32_t length : batch.lengths)  // outside of the contract the runtime may end the process
        if (length < 1 || static_cast<std::size_t>(length) > batch.T)
          throw Error(bundle.where(test) + ": a length is not that of a row; export it again");
      if (file.facts.task == "classify") shape = rows;
      Outputs expected;
      if (file.facts.task != "lm") expected.label_ids = tensor<std::int32_t>(bundle, output(2), "label_ids", shape);
      shape.push_back(file.facts.classes);
      expected.logits = tensor<float>(bundle, output(0), "logits", shape);
      expected.probabilities = tensor<float>(bundle, output(1), "probabilities", shape);
      Checked row{name, test, 0, 0, false};
      compare(replay(file, batch, streams), expected, file.facts.classes, each.tolerance, row);
      proof.passed = proof.passed && row.passed;
      proof.rows.push_back(row);
    }
  }
  return proof;
}

}  // namespace ohlol
