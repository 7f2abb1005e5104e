// host MODEL TEXT COUNT: the answer, then the median seconds of COUNT more, as lines of JSON.
#include <ohlol.hpp>

#include <chrono>
#include <iostream>

static std::string answer(const ohlol::Model& model, const std::string& text) {
  if (model.task() == "classify") return *model.classify(text).label;
  std::string told;
  for (const auto& one : model.tag(text).labels) told += one.label;
  return told;
}

int main(int, char** given) {
  const ohlol::Model model(given[1]);
  const std::string text = given[2];
  std::cout << '"' << answer(model, text) << '"' << std::endl;
  std::vector<double> times;
  for (int k = 0; k < 200 + std::stoi(given[3]); ++k) {
    const auto begun = std::chrono::steady_clock::now();
    answer(model, text);
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
  }
  std::sort(times.begin() + 200, times.end());
  std::cout << times[200 + (times.size() - 200) / 2] << std::endl;
}
