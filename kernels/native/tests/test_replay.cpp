// Replays the recorded steps of a bundle: what other processors have to reproduce. Prints the worst error.
//   test_replay MODEL.lrn STEPS.bin BOUND
// STEPS.bin: int32 steps, then per step observation, return_to_go, reward, is_first, logits (float32; images uint8).
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "lram.h"

namespace {

[[noreturn]] void stop(const char* text) {
  std::fprintf(stderr, "%s\n", text);
  std::exit(2);
}

void check(lram_status status) {
  if (status != LRAM_OK) stop(lram_last_error());
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) stop("expected MODEL.lrn STEPS.bin BOUND");
  lram_model* model = nullptr;
  check(lram_open(arguments[1], nullptr, &model));
  lram_description about;
  check(lram_describe(model, &about));
  const auto rows = static_cast<std::size_t>(about.batch);
  lram_state* state = nullptr;
  check(lram_state_create(model, about.batch, &state));
  std::FILE* file = std::fopen(arguments[2], "rb");
  int steps = 0;
  if (file == nullptr || std::fread(&steps, 4, 1, file) != 1 || steps < 1) stop("STEPS.bin: cannot be read");
  std::vector<unsigned char> observation(rows * about.observation_size * (about.observation == LRAM_IMAGE ? 1 : 4));
  std::vector<float> scalars(3 * rows);
  std::vector<float> expected(rows * about.logits_size);
  std::vector<float> logits(expected.size());
  std::vector<std::int64_t> action(rows * about.action_size);
  double worst = 0;
  for (int step = 0; step < steps; ++step) {
    if (std::fread(observation.data(), 1, observation.size(), file) != observation.size() ||
        std::fread(scalars.data(), 4, scalars.size(), file) != scalars.size() ||
        std::fread(expected.data(), 4, expected.size(), file) != expected.size())
      stop("STEPS.bin: ends too early");
    const lram_inputs inputs = {observation.data(), scalars.data(), scalars.data() + rows, scalars.data() + 2 * rows};
    const lram_outputs outputs = {action.data(), logits.data()};
    check(lram_step(state, &inputs, &outputs));
    double difference = 0;
    double norm = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      difference += std::pow(static_cast<double>(logits[i]) - expected[i], 2);
      norm += std::pow(static_cast<double>(expected[i]), 2);
    }
    worst = std::fmax(worst, std::sqrt(difference / norm));
  }
  std::fclose(file);
  lram_state_free(state);
  lram_close(model);
  const bool passed = worst <= std::atof(arguments[3]);
  std::printf("%s: %d steps on %s, relative error %.2e: %s\n", arguments[1], steps, about.isa, worst, passed ? "ok" : "FAILED");
  return passed ? 0 : 1;
}
