#include "program/program_episodes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "error.h"
#include "program/program_rows.h"

namespace lram {
namespace {

constexpr int kMostRowsAtOnce = 64;

bool finite(const float* values, std::size_t count, float largest) {
  int beyond = 0;
  for (std::size_t i = 0; i < count; ++i) beyond |= static_cast<int>(!(std::fabs(values[i]) <= largest));
  return beyond == 0;
}

int rows_at_once(const Program& program, int batch) {
  return std::min(batch, std::max(1, kMostRowsAtOnce / std::max(1, program.most_tokens())));
}

int round_up(int count, int step) { return (count + step - 1) / step * step; }

// What the products of some rows need.
struct ProductNeeds {
  int rows;            // that buffers have room for: products of many tokens write whole groups of them
  std::size_t tokens;  // most that have codes
  std::size_t codes;
  std::size_t sums;
  std::size_t packed;
};

ProductNeeds needs_of(const Program& program, int batch, int rows) {
  ProductNeeds needs = {rows, 0, 0, 0, 0};
  constexpr std::size_t planes = 2;
  for (const Instruction& instruction : program.instructions()) {
    if (static_cast<Operation>(instruction.operation) != Operation::dense) continue;
    const int per_row = static_cast<int>(instruction.sizes[0]);
    const auto columns = static_cast<std::size_t>(instruction.matrix.cols);
    if (by_groups(batch, per_row)) {
      const int tokens = round_up(rows * per_row, program.kernels().gemm_tokens);
      needs.rows = std::max(needs.rows, round_up(tokens, per_row) / per_row);
      needs.packed = std::max(needs.packed, static_cast<std::size_t>(tokens) * columns);
    } else {
      const auto tokens = static_cast<std::size_t>(rows * per_row);
      needs.tokens = std::max(needs.tokens, tokens);
      needs.codes = std::max(needs.codes, tokens * planes * (columns + kGroup));
      needs.sums = std::max(needs.sums, tokens * planes * (columns / kGroup + 1));
    }
  }
  return needs;
}

struct Job {
  ProgramEpisodes& episodes;
  const ChosenRows& rows;
  const void* const* inputs;
  int threads;
};

// One row: threads share the outputs of its matrices.
void together(void* opaque, int thread) {
  const Job& job = *static_cast<Job*>(opaque);
  ProgramRows(job.episodes, job.rows, job.inputs, thread, job.threads).run_together();
}

// Many rows: threads share them.
void apart(void* opaque, int thread) {
  const Job& job = *static_cast<Job*>(opaque);
  ProgramRows(job.episodes, job.rows, job.inputs, thread, 1).run_share(job.threads);
}

}  // namespace

ProgramEpisodes::ProgramEpisodes(Program& program, int batch)
    : Episodes(program, batch),
      program_(program),
      rows_at_once_(rows_at_once(program, batch)),
      rows_of_buffers_(needs_of(program, batch, rows_at_once_).rows),
      arena_(planned_bytes(), program.lock_memory(), program.huge_state()) {
  Planner planner(arena_.begin());
  plan(planner);
  for (int row = 0; row < batch; ++row) begin(row);
}

ProgramEpisodes::ProgramEpisodes(const ProgramEpisodes& other) : ProgramEpisodes(other.program_, other.batch()) {
  for (std::size_t i = 0; i < current().size(); ++i)
    std::copy_n(other.current()[i], stride_of(i) * static_cast<std::size_t>(batch()), current()[i]);
}

std::unique_ptr<Episodes> ProgramEpisodes::clone() const { return std::make_unique<ProgramEpisodes>(*this); }

std::size_t ProgramEpisodes::planned_bytes() {
  Planner counting(nullptr);
  plan(counting);
  return counting.used();
}

std::size_t ProgramEpisodes::stride_of(std::size_t state) const {
  return (program_.state_sizes()[state] + 15) / 16 * 16;
}

void ProgramEpisodes::plan(Planner& planner) {
  const auto rows = static_cast<std::size_t>(batch());
  threads_.clear();
  outputs_.clear();
  for (auto& side : states_) {
    side.clear();
    for (std::size_t i = 0; i < program_.state_fields().size(); ++i)
      side.push_back(planner.take<float>(rows * stride_of(i)));
    if (&side == &states_[0]) state_floats_ = planner.used() / sizeof(float);
  }
  for (auto& side : states_)
    if (side.empty()) side.push_back(planner.take<float>(0));
  planner.guard();
  for (const Field& output : program_.outputs()) outputs_.push_back(planner.take<float>(rows * output.size()));
  const ProductNeeds needs = needs_of(program_, batch(), rows_at_once_);
  for (int thread = 0; thread < program_.pool().threads(); ++thread) {
    ProgramBuffers b = {};
    b.arena = planner.take<float>(static_cast<std::size_t>(rows_of_buffers_) * program_.header().arena);
    b.codes = planner.take<std::int8_t>(needs.codes);
    b.code_scales = planner.take<float>(needs.tokens);
    b.code_sums = planner.take<std::int32_t>(needs.sums);
    b.packed = planner.take<float>(needs.packed);
    b.scratch = planner.take<float>(kGemmScratch);
    b.bases.assign(program_.buffers().size(), nullptr);
    threads_.push_back(b);
  }
}

void ProgramEpisodes::reset(int row) { begin(row); }

void ProgramEpisodes::begin(int row) {
  for (std::size_t i = 0; i < program_.state_fields().size(); ++i) {
    const StateField& field = program_.state_fields()[i];
    float* values = current()[i] + static_cast<std::size_t>(row) * stride_of(i);
    if (field.initial_values != nullptr)
      std::copy_n(field.initial_values, field.size(), values);
    else
      std::fill_n(values, field.size(), field.initial);
  }
}

void ProgramEpisodes::save(const ChosenRows& rows, float* values) const {
  for (std::size_t i = 0; i < program_.state_fields().size(); ++i) {
    const std::size_t size = program_.state_fields()[i].size();
    for (int row = 0; row < rows.count; ++row, values += size)
      std::copy_n(current()[i] + static_cast<std::size_t>(rows.place(row)) * stride_of(i), size, values);
  }
}

void ProgramEpisodes::load(const ChosenRows& rows, const float* values) {
  const float* at = values;
  for (const StateField& field : program_.state_fields())
    for (std::size_t i = 0; i < field.size() * static_cast<std::size_t>(rows.count); ++i, ++at)
      if (!std::isfinite(*at))
        throw Error(LRAM_ERROR_STATE,
                    field.name + ": expected finite values, got " + shown(*at) + " at element " + std::to_string(i));
  for (std::size_t i = 0; i < program_.state_fields().size(); ++i) {
    const std::size_t size = program_.state_fields()[i].size();
    for (int row = 0; row < rows.count; ++row, values += size)
      std::copy_n(values, size, current()[i] + static_cast<std::size_t>(rows.place(row)) * stride_of(i));
  }
}

void ProgramEpisodes::check(const ChosenRows& chosen, const void* const* inputs, void* const* /*outputs*/) const {
  const auto rows = static_cast<std::size_t>(chosen.count);
  for (std::size_t i = 0; i < program_.inputs().size(); ++i) {
    const Field& field = program_.inputs()[i];
    if (inputs[i] == nullptr && field.read)
      throw Error(LRAM_ERROR_ARGUMENT, field.name + ": expected an array, got NULL");
    if (inputs[i] == nullptr || field.element != Element::float32) continue;
    const auto* values = static_cast<const float*>(inputs[i]);
    const std::size_t count = rows * program_.input_sizes()[i];
    if (!finite(values, count, std::numeric_limits<float>::max())) {
      const float* odd = std::find_if(values, values + count, [](float value) { return !std::isfinite(value); });
      throw Error(LRAM_ERROR_INPUT, field.name + ": expected finite values, got " + shown(*odd) + " at element " +
                                        std::to_string(odd - values));
    }
    if (i != program_.is_first()) continue;
    const float* odd = std::find_if(values, values + count, [](float value) { return value != 0 && value != 1; });
    if (odd != values + count)
      throw Error(LRAM_ERROR_INPUT,
                  "is_first: expected 0 or 1, got " + shown(*odd) + " at element " + std::to_string(odd - values));
  }
}

void ProgramEpisodes::step(const ChosenRows& rows, const void* const* inputs, void* const* outputs) {
  ThreadPool& pool = program_.pool();
  const FloatingPointMode mode;
  Job job = {*this, rows, inputs, pool.threads()};
  for (ProgramBuffers& thread : threads_) thread.finite = true;
  if (program_.threads_for(rows.count) == 1) {
    job.threads = 1;
    apart(&job, 0);
  } else {
    pool.run(rows.count == 1 ? together : apart, &job);
  }
  for (const ProgramBuffers& thread : threads_)
    if (!thread.finite) refuse(rows);
  check_whole_numbers(rows);
  hand_out(rows, outputs);
  take_over(rows);
}

void ProgramEpisodes::take_over(const ChosenRows& rows) {
  if (rows.count == batch()) {
    side_ = 1 - side_;
    return;
  }
  for (std::size_t i = 0; i < program_.state_fields().size(); ++i)
    for (int row = 0; row < rows.count; ++row) {
      const std::size_t at = static_cast<std::size_t>(rows.place(row)) * stride_of(i);
      std::copy_n(next()[i] + at, program_.state_sizes()[i], current()[i] + at);
    }
}

void ProgramEpisodes::check_whole_numbers(const ChosenRows& rows) const {
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    const Field& field = program_.outputs()[i];
    if (field.element == Element::float32) continue;
    const bool byte = field.element == Element::uint8;
    const auto within = [byte](float value) {
      return byte ? value > -1 && value < 256 : value >= -0x1p63F && value < 0x1p63F;
    };
    const float* begin = outputs_[i];
    const float* end = begin + program_.output_sizes()[i] * static_cast<std::size_t>(rows.count);
    const float* odd = std::find_if_not(begin, end, within);
    if (odd != end)
      throw Error(LRAM_ERROR_OVERFLOW, field.name + ": expected numbers that " + (byte ? "uint8" : "int64") +
                                           " holds, got " + shown(*odd) + " at element " + std::to_string(odd - begin) +
                                           "; nothing has changed");
  }
}

void ProgramEpisodes::hand_out(const ChosenRows& rows, void* const* outputs) const {
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    if (outputs[i] == nullptr) continue;
    const Field& field = program_.outputs()[i];
    const std::size_t count = program_.output_sizes()[i] * static_cast<std::size_t>(rows.count);
    if (field.element == Element::float32)
      std::copy_n(outputs_[i], count, static_cast<float*>(outputs[i]));
    else if (field.element == Element::int64)
      std::transform(outputs_[i], outputs_[i] + count, static_cast<std::int64_t*>(outputs[i]),
                     [](float value) { return static_cast<std::int64_t>(value); });
    else
      std::transform(outputs_[i], outputs_[i] + count, static_cast<std::uint8_t*>(outputs[i]),
                     [](float value) { return static_cast<std::uint8_t>(value); });
  }
}

void ProgramEpisodes::refuse(const ChosenRows& rows) const {
  const auto look = [&](const std::string& name, const float* values, std::size_t size, std::size_t stride,
                        bool of_state) {
    for (int row = 0; row < rows.count; ++row) {
      const int at = of_state ? rows.place(row) : row;
      if (!finite(values + static_cast<std::size_t>(at) * stride, size, std::numeric_limits<float>::max()))
        throw Error(LRAM_ERROR_OVERFLOW, name + ": expected finite values, got others in row " +
                                             std::to_string(rows.place(row)) + "; nothing has changed");
    }
  };
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    const std::size_t size = program_.outputs()[i].size();
    look(program_.outputs()[i].name, outputs_[i], size, size, false);
  }
  for (std::size_t i = 0; i < program_.state_fields().size(); ++i)
    look(program_.state_fields()[i].name, states_[1 - side_][i], program_.state_fields()[i].size(), stride_of(i), true);
  throw Error(LRAM_ERROR_OVERFLOW, "step: expected finite values; nothing has changed");
}

}  // namespace lram
