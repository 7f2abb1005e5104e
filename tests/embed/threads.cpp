// Four threads that tag with one model and open its stream.onnx at once; exits with 0 where all had one answer.

#include "ohlol.hpp"

#include <iostream>
#include <thread>

int main(int, char** words) try {
  const ohlol::Model model(words[1]);
  std::array<std::string, 4> found;
  std::vector<std::thread> threads;
  for (std::string& told : found)
    threads.emplace_back([&model, &told] {
      const ohlol::Model copy = model;
      auto stream = copy.stream<ohlol::Tagged>();  // the first of them opens the file
      for (const std::string piece : {"hello ", "wor", "ld"})
        for (const auto& one : stream.feed(piece).labels) told += one.label;
      for (const auto& one : stream.finish().labels) told += one.label;
      for (const auto& one : model.tag("hello world").labels) told += one.label;
    });
  for (std::thread& thread : threads) thread.join();
  std::cout << found[0] << "\n";
  return std::count(found.begin(), found.end(), found[0]) == 4 ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 2;
}
