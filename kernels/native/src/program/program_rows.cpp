#include "program/program_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lram {
namespace {

// A contiguous share of some work.
int start_of(int total, int number, int shares) {
  return static_cast<int>(static_cast<std::int64_t>(total) * number / shares);
}

bool finite(const float* values, std::size_t count) {
  int beyond = 0;
  for (std::size_t i = 0; i < count; ++i)
    beyond |= static_cast<int>(!(std::fabs(values[i]) <= std::numeric_limits<float>::max()));
  return beyond == 0;
}

}  // namespace

void ProgramRows::run_share(int threads) {
  const int end = start_of(chosen.count, number + 1, threads);
  for (int row = start_of(chosen.count, number, threads); row < end; row += rows_) {
    begin(row, neighbours(row, end));
    read_inputs();
    for (const Instruction& instruction : program.instructions()) run(instruction);
    keep_results();
  }
}

void ProgramRows::run_together() {
  if (number == 0) {
    begin(0, 1);
    read_inputs();
  } else {
    rows_ = 1;
  }
  barrier();
  bool alone = false;  // the first thread has gone on by itself
  for (const Instruction& instruction : program.instructions()) {
    const bool shared = static_cast<Operation>(instruction.operation) == Operation::dense;
    if (shared && alone) barrier();
    alone = !shared;
    if (shared || number == 0) run(instruction);
    if (shared) barrier();
  }
  if (number == 0) keep_results();
}

void ProgramRows::barrier() { program.pool().barrier(number); }

int ProgramRows::neighbours(int row, int end) const {
  int count = 1;
  while (count < episodes.rows_at_once_ && row + count < end && chosen.place(row + count) == chosen.place(row) + count)
    ++count;
  return count;
}

void ProgramRows::begin(int first_row, int rows) {
  first_ = first_row;
  rows_ = rows;
  for (std::size_t i = 0; i < buffers.bases.size(); ++i) {
    const BufferEntry& b = program.buffers()[i];
    switch (static_cast<BufferKind>(b.kind)) {
      case BufferKind::arena:
        buffers.bases[i] = buffers.arena + std::size_t{b.number} * static_cast<std::size_t>(episodes.rows_of_buffers_);
        break;
      case BufferKind::state:
        buffers.bases[i] = episodes.current()[b.number] + static_cast<std::size_t>(chosen.place(first_row)) * b.stride;
        break;
      case BufferKind::constant:
        buffers.bases[i] = program.constant(b.number);
        break;
    }
  }
}

void ProgramRows::read_inputs() {
  for (std::size_t i = 0; i < program.inputs().size(); ++i) {
    const Field& field = program.inputs()[i];
    if (!field.read) continue;
    const std::size_t size = program.input_sizes()[i];
    for (int row = 0; row < rows_; ++row) {
      float* values = to(program.input(i).place, row);
      const std::size_t from = static_cast<std::size_t>(first_ + row) * size;
      if (field.element == Element::float32)
        std::copy_n(static_cast<const float*>(inputs[i]) + from, size, values);
      else if (field.element == Element::uint8)
        std::copy_n(static_cast<const std::uint8_t*>(inputs[i]) + from, size, values);
      else
        std::transform(static_cast<const std::int64_t*>(inputs[i]) + from,
                       static_cast<const std::int64_t*>(inputs[i]) + from + size, values,
                       [](std::int64_t value) { return static_cast<float>(value); });
    }
  }
}

void ProgramRows::run(const Instruction& instruction) {
  const std::uint32_t* sizes = instruction.sizes;
  const Place* operands = instruction.operands;
  const auto size = [sizes](int i) { return static_cast<int>(sizes[i]); };
  switch (static_cast<Operation>(instruction.operation)) {
    case Operation::pointwise:
      return pointwise(instruction);
    case Operation::dense:
      return dense(instruction);
    case Operation::copy:
      for (int row = 0; row < rows_; ++row) std::copy_n(at(operands[1], row), sizes[0], to(operands[0], row));
      return;
    case Operation::gather: {
      const auto* places = reinterpret_cast<const std::int32_t*>(buffers.bases[operands[2].buffer]);
      for (int row = 0; row < rows_; ++row) {
        const float* from = at(operands[1], row);
        const float fill = *at(operands[3], row);
        float* y = to(operands[0], row);
        for (std::uint32_t i = 0; i < sizes[0]; ++i) y[i] = places[i] < 0 ? fill : from[places[i]];
      }
      return;
    }
    case Operation::reduce:
      for (int row = 0; row < rows_; ++row)
        kernels.program.reduce({static_cast<Reduction>(instruction.function), size(0), size(1), at(operands[1], row),
                                to(operands[0], row)});
      return;
    case Operation::product:
      for (int row = 0; row < rows_; ++row)
        for (int i = 0; i < size(0); ++i)
          kernels.program.product({size(1), size(2), size(3),
                                   at(operands[1], row) + std::ptrdiff_t{i} * size(1) * size(2),
                                   at(operands[2], row) + std::ptrdiff_t{i} * size(2) * size(3),
                                   to(operands[0], row) + std::ptrdiff_t{i} * size(1) * size(3)});
      return;
  }
}

void ProgramRows::pointwise(const Instruction& instruction) {
  const std::uint32_t* sizes = instruction.sizes;
  const Place* operands = instruction.operands;
  const auto function = static_cast<Function>(instruction.function);
  const int arguments = arguments_of(function);
  const int count = static_cast<int>(sizes[1]);
  int steps[3] = {};
  bool dense_rows = sizes[0] == 1 && stride(operands[0]) == sizes[1];
  for (int i = 0; i < arguments; ++i) {
    steps[i] = static_cast<int>(sizes[5] >> i & 1);
    dense_rows = dense_rows && stride(operands[i + 1]) == (steps[i] == 1 ? sizes[1] : 0);
  }
  const int rows = dense_rows ? 1 : rows_;
  const int each = dense_rows ? count * rows_ : count;
  for (int row = 0; row < rows; ++row) {
    const float* x[3] = {};
    for (int i = 0; i < arguments; ++i) x[i] = at(operands[i + 1], row);
    float* y = to(operands[0], row);
    for (std::uint32_t time = 0; time < sizes[0]; ++time, y += count) {
      kernels.program.pointwise({function, each, x[0], x[1], x[2], steps[0], steps[1], steps[2], y});
      for (int i = 0; i < arguments; ++i) x[i] += sizes[2 + i];
    }
  }
}

void ProgramRows::dense(const Instruction& instruction) {
  const Matrix& matrix = instruction.matrix;
  const Place* operands = instruction.operands;
  const int per_row = static_cast<int>(instruction.sizes[0]);
  const int tokens = rows_ * per_row;
  const int wide = matrix.tiles * kTileRows;
  const int share = together > 1 ? number : 0;  // of the outputs
  const int first = start_of(matrix.tiles, share, together);
  const int last = start_of(matrix.tiles, share + 1, together);
  const float* x = at(operands[1], 0);
  const std::size_t x_stride = per_row == 1 ? stride(operands[1]) : instruction.sizes[3];
  const float* bias = at(operands[3], 0);
  float* y = to(operands[0], 0);
  const std::size_t y_stride = per_row == 1 ? stride(operands[0]) : static_cast<std::size_t>(wide);
  if (by_groups(episodes.batch(), per_row)) {
    const int group = kernels.gemm_tokens;
    const int groups = (tokens + group - 1) / group;
    for (int i = 0; i < groups; ++i)
      kernels.pack_group(x + static_cast<std::size_t>(i * group) * x_stride, x_stride,
                         std::min(group, tokens - i * group), matrix.cols,
                         own.packed + static_cast<std::size_t>(i * group) * static_cast<std::size_t>(matrix.cols));
    lap(Stage::other);
    kernels.gemm({&matrix, first, last, own.packed, 0, groups, bias, false, y, y_stride, own.scratch});
    lap(Stage::dense);
    return;
  }
  const Tokens codes = {tokens,          x,
                        x_stride,        matrix.planes,
                        own.codes,       static_cast<std::size_t>(matrix.cols) + kGroup,
                        own.code_scales, own.code_sums};
  kernels.quantize(codes, matrix.format, matrix.cols);
  lap(Stage::other);
  kernels.dense(matrix, first, last, codes, y, y_stride);
  lap(Stage::dense);
  const int start = first * kTileRows;
  const int count = (last - first) * kTileRows;
  for (int token = 0; token < tokens && count > 0; ++token) {
    float* out = y + static_cast<std::size_t>(token) * y_stride + start;
    kernels.program.pointwise({Function::add, count, out, bias + start, nullptr, 1, 1, 0, out});
  }
}

void ProgramRows::keep_results() {
  const auto keep = [&](const Place& place, std::size_t size, float* values, std::size_t step) {
    for (int row = 0; row < rows_; ++row, values += step) {
      std::copy_n(at(place, row), size, values);
      own.finite = finite(values, size) && own.finite;
    }
  };
  for (std::size_t i = 0; i < program.outputs().size(); ++i) {
    const std::size_t size = program.output_sizes()[i];
    keep(program.output(i).place, size, episodes.outputs_[i] + static_cast<std::size_t>(first_) * size, size);
  }
  const auto at = static_cast<std::size_t>(chosen.place(first_));
  for (std::size_t i = 0; i < program.state_sizes().size(); ++i)
    keep(program.state(i).place, program.state_sizes()[i], episodes.next()[i] + at * episodes.stride_of(i),
         episodes.stride_of(i));
}

}  // namespace lram
