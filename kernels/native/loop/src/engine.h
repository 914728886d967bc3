// An opened artifact and one row of it, with room for a step. What a swap exchanges.
#pragma once
#include <lram.h>
#include <lram/loop/error.h>
#include <lram/loop/policy.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lram::loop {

struct CloseModel {
  void operator()(lram_model* model) const { lram_close(model); }
};
struct FreeState {
  void operator()(lram_state* state) const { lram_state_free(state); }
};
using StatePointer = std::unique_ptr<lram_state, FreeState>;

// Throws Error, with lram_last_error, unless a call went well.
void must(lram_status status);

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

struct Engine {
  Engine(const std::string& file, const lram_options& options);

  lram_status step() { return lram_step_fields(state.get(), given.data(), given.size(), wanted.data(), wanted.size()); }
  // Steps a state of its own over zeros.
  void warm_up(int steps);
  StatePointer new_state() const;
  const void* chosen() const { return wanted[0]; }
  void* chosen() { return wanted[0]; }
  // Of what weights: 32 bytes; nullptr where the artifact does not say.
  const unsigned char* source() const;

  std::string path;
  std::unique_ptr<lram_model, CloseModel> model;
  StatePointer state;  // after the model, so that it is freed before
  lram_description about = {};
  lram_field action = {};
  bool bounded = false;  // limits or safety are said of the action
  std::vector<Observation> observations;
  std::size_t return_to_go = kNone;  // places among the inputs, and what lies there
  std::size_t reward = kNone;
  std::size_t is_first = kNone;
  float return_to_go_value = 0;
  float reward_value = 0;
  float is_first_value = 1;
  std::vector<const void*> given;
  std::vector<void*> wanted;  // the first is `chosen`, the others nobody asks for
  std::vector<float> floats;
  std::vector<std::int64_t> choices;
};

// Throws Error, naming the first difference, unless a loop can go on with `other` where it runs `own`.
void check_alike(const Engine& own, const Engine& other);

}  // namespace lram::loop
