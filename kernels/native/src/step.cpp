#include "step.h"

#include <cmath>
#include <limits>
#include <string>

#include "error.h"

namespace lram {
namespace {

void check_finite(const char* name, const float* values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i)
    if (!std::isfinite(values[i]))
      throw Error(LRAM_ERROR_INPUT, std::string(name) + ": expected finite values, got " + shown(values[i]) +
                                        " at element " + std::to_string(i));
}

void work(void* opaque, int thread) {
  StepContext& context = *static_cast<StepContext*>(opaque);
  const Model& model = context.model;
  // every thread has the same tokens, so all go on or none does
  if (!model.encoders().run(context, thread)) return;
  for (std::size_t block = 0; block < model.blocks().size(); ++block)
    model.blocks()[block]->run(context, context.state.memory_of(block), thread);
  model.head().run(context, thread);
  if (thread != 0) return;
  context.decoded = true;
  context.state.leave();
}

// Marks the rows whose logits are not finite.
void check_logits(const StepContext& context) {
  int first_lost = -1;
  for (int row = context.rows.count - 1; row >= 0; --row) {
    const bool lost = !within(context.logits(row), context.model.head().logits(), std::numeric_limits<float>::max());
    context.state.set_lost(context.rows.place(row), lost);
    if (lost) first_lost = context.rows.place(row);
  }
  if (first_lost >= 0)
    throw Error(LRAM_ERROR_OVERFLOW, "logits: expected finite values, got others in row " + std::to_string(first_lost) +
                                         "; its state is lost: reset it, load one, or start an episode");
}

}  // namespace

bool within(const float* values, int count, float largest) {
  int beyond = 0;
  for (int i = 0; i < count; ++i) beyond |= static_cast<int>(!(std::fabs(values[i]) <= largest));
  return beyond == 0;
}

void check_inputs(const State& state, const ChosenRows& chosen, const lram_inputs& inputs) {
  const Encoders& encoders = state.model().encoders();
  const auto rows = static_cast<std::size_t>(chosen.count);
  const auto present = [](const char* name, const void* pointer) {
    if (pointer == nullptr) throw Error(LRAM_ERROR_ARGUMENT, std::string(name) + ": expected an array, got NULL");
  };
  // what the policy does not read may be NULL, and is not looked at
  struct Number {
    const char* name;
    const float* values;
    bool read;
  };
  const Number numbers[] = {{"return_to_go", inputs.return_to_go, encoders.reads(Input::return_to_go)},
                            {"reward", inputs.reward, encoders.reads(Input::reward)}};
  present("observation", inputs.observation);
  for (const Number& number : numbers)
    if (number.read) present(number.name, number.values);
  present("is_first", inputs.is_first);
  if (!encoders.images())
    check_finite("observation", static_cast<const float*>(inputs.observation), rows * encoders.observation_size());
  for (const Number& number : numbers)
    if (number.read) check_finite(number.name, number.values, rows);
  for (std::size_t row = 0; row < rows; ++row)
    if (inputs.is_first[row] != 0 && inputs.is_first[row] != 1)
      throw Error(LRAM_ERROR_INPUT, "is_first: expected 0 or 1, got " + shown(inputs.is_first[row]) + " at element " +
                                        std::to_string(row));
  state.require(chosen, inputs.is_first);
}

void run_step(State& state, const ChosenRows& rows, const lram_inputs& inputs, const lram_outputs& outputs) {
  Model& model = state.model();
  StepContext context = {state, model, model.kernels(), rows, model.hidden(), room_of(model.hidden()), inputs, outputs};
  const FloatingPointMode mode;
  model.pool().finish_all();
  if (context.threads() == 1)
    model.pool().run_alone(work, &context);
  else
    model.pool().run(work, &context);
  if (!context.decoded) model.encoders().refuse(context);
  model.head().add_bias(context);
  check_logits(context);
  model.head().choose(context);
}

void add_parts(StepContext& context, int thread, int count) {
  const State& state = context.state;
  const int room = context.room;
  const bool several = state.units.size() > 1;
  const auto part_stride = several ? static_cast<std::size_t>(state.units[1].part - state.units[0].part) : 0;
  float* x = state.threads[static_cast<std::size_t>(thread)].x;
  for (int token = 0; token < context.tokens(); ++token)
    context.kernels.accumulate(x + token * room, state.units[0].part + token * state.padded_hidden(), part_stride,
                               count, room);
}

Tokens normalized(StepContext& context, int thread, const Norm& norm, Format format, int planes) {
  const int room = context.room;
  ThreadBuffers& own = context.state.threads[static_cast<std::size_t>(thread)];
  for (int token = 0; token < context.tokens(); ++token)
    norm(context.kernels, own.x + token * room, context.hidden, own.normed + token * room);
  const auto stride = static_cast<std::size_t>(room);
  const Tokens tokens = {context.tokens(), own.normed,      stride,          planes,
                         own.codes,        stride + kGroup, own.code_scales, own.code_sums};
  context.kernels.quantize(tokens, format, room);
  return tokens;
}

namespace {

template <class Buffers>
Tokens quantized(StepContext& context, const Buffers& buffers, const float* x, std::size_t stride, int count, int width,
                 const Matrix& matrix) {
  const Tokens tokens = {count,
                         x,
                         stride,
                         matrix.planes,
                         buffers.codes,
                         static_cast<std::size_t>(width) + kGroup,
                         buffers.code_scales,
                         buffers.code_sums};
  context.kernels.quantize(tokens, matrix.format, width);
  return tokens;
}

}  // namespace

// Who has all of a unit keeps what it has of the residual stream for the next unit; of others, each quantizes for
// itself.
Tokens of_share(StepContext& context, int thread, const Share& share, const float* x, std::size_t stride, int count,
                int width, const Matrix& matrix) {
  if (!share.whole()) return of_thread(context, thread, x, stride, count, width, matrix);
  return quantized(context, context.state.units[static_cast<std::size_t>(share.unit)], x, stride, count, width, matrix);
}

Tokens of_thread(StepContext& context, int thread, const float* x, std::size_t stride, int count, int width,
                 const Matrix& matrix) {
  return quantized(context, context.state.threads[static_cast<std::size_t>(thread)], x, stride, count, width, matrix);
}

}  // namespace lram
