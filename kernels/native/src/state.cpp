#include "state.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"

namespace lram {
namespace {

constexpr float kSlstmInitialM = -1e30F;  // makes the first step take m = i

int checked_batch(int batch) {
  if (batch < 1 || batch > 4096)
    throw Error(LRAM_ERROR_ARGUMENT, "batch: expected 1 to 4096, got " + std::to_string(batch));
  return batch;
}

}  // namespace

State::State(Model& model, int batch)
    : model_(model),
      batch_(checked_batch(batch)),
      arena_(planned_bytes(), model.lock_memory()),
      lost_(static_cast<std::size_t>(batch), false) {
  Planner planner(arena_.begin());
  plan(planner);
  tensors_ = describe_state(model_);
  auto tensor = tensors_.begin();
  for (std::size_t block = 0; block < blocks.size(); ++block) {
    const BlockState& b = blocks[block];
    if (model_.blocks[block].is_slstm)
      for (float* data : {b.conv, b.y, b.c, b.n, b.m}) (tensor++)->data = data;
    else
      for (float* data : {b.conv, b.C, b.n, b.m}) (tensor++)->data = data;
  }
  for (const StateTensor& t : tensors_) size_ += t.size * static_cast<std::size_t>(batch_);
  for (const StateTensor& t : tensors_)  // fresh memory is 0, which also is an empty lazy cell
    if (t.data != nullptr && t.initial != 0) std::fill_n(t.data, t.size * static_cast<std::size_t>(batch_), t.initial);
}

State::State(const State& other) : State(other.model_, other.batch_) {
  std::memcpy(memory(), other.memory(), state_bytes_);
  lost_ = other.lost_;
}

std::size_t State::planned_bytes() {
  Planner counting(nullptr);
  plan(counting);
  return counting.used();
}

void State::plan(Planner& planner) {
  blocks.clear();
  heads.clear();
  threads.clear();
  plan_state(planner);
  state_bytes_ = planner.used();
  planner.guard();
  plan_buffers(planner);
}

void State::plan_state(Planner& planner) {
  const Sizes& s = model_.sizes();
  const auto rows = static_cast<std::size_t>(batch_);
  const auto window = static_cast<std::size_t>(s.conv_kernel - 1);
  for (const BlockWeights& weights : model_.blocks) {
    BlockState state = {};
    if (weights.is_slstm) {
      const auto hidden = static_cast<std::size_t>(s.hidden);
      state.conv = planner.take<float>(rows * window * hidden);
      for (float** part : {&state.y, &state.c, &state.n, &state.m}) *part = planner.take<float>(rows * hidden);
    } else {
      const auto inner = static_cast<std::size_t>(s.inner);
      state.conv = planner.take<float>(rows * window * inner);
      const auto cells = rows * static_cast<std::size_t>(s.heads);
      if (model_.lazy_state())
        state.lazy = plan_lazy(planner, cells, s.head_width, model_.kernels().memory_columns);
      else
        state.C = planner.take<float>(rows * inner * static_cast<std::size_t>(s.head_width));
      state.n = planner.take<float>(rows * inner);
      state.m = planner.take<float>(rows * static_cast<std::size_t>(s.heads));
    }
    blocks.push_back(state);
  }
}

void State::plan_buffers(Planner& planner) {
  const Sizes& s = model_.sizes();
  const auto rows = static_cast<std::size_t>(batch_);
  const std::size_t count = rows * kTokens;
  const auto hidden = static_cast<std::size_t>(padded(s.hidden));
  constexpr std::size_t planes = 2;
  // heads of mLSTM and sLSTM blocks and slices of the feed-forward use the same buffers
  const int widest = std::max({s.head_width, 4 * s.slstm_room, s.ffn_slice});
  const auto width = static_cast<std::size_t>(padded(widest));
  const Matrix& encoder = model_.embed_observation;
  const int observed = encoder.format == Format::float32 ? 0 : encoder.cols;  // else nobody asks for its codes
  const auto groups = static_cast<std::size_t>(std::max({widest, s.hidden, observed}) / kGroup + 1);
  const auto longest = static_cast<std::size_t>(std::max({widest, padded(s.hidden), observed}));
  const std::size_t codes = count * 2 * (longest + kGroup);
  for (int head = 0; head < std::max({s.heads, s.slstm_heads, s.ffn_slices}); ++head) {
    HeadBuffers b = {};
    for (float** buffer : {&b.input, &b.gate, &b.convolved, &b.q, &b.k, &b.v, &b.h})
      *buffer = planner.take<float>(count * width);
    b.codes = planner.take<std::int8_t>(codes);
    b.code_scales = planner.take<float>(count);
    b.code_sums = planner.take<std::int32_t>(count * planes * groups);
    b.scratch = planner.take<float>(std::max(8 * width, lazy_scratch(s.head_width, model_.kernels().memory_columns)));
    b.sums = planner.take<float>(rows * 2 * static_cast<std::size_t>(s.heads) * kTokens);
    b.part = planner.take<float>(count * hidden);
    heads.push_back(b);
  }
  for (int thread = 0; thread < model_.pool().threads(); ++thread) {
    ThreadBuffers b = {};
    b.x = planner.take<float>(count * hidden);
    b.normed = planner.take<float>(count * hidden);
    b.codes = planner.take<std::int8_t>(codes);
    b.code_scales = planner.take<float>(count);
    b.code_sums = planner.take<std::int32_t>(count * planes * groups);
    threads.push_back(b);
  }
  shared.observed = planner.take<float>(rows * hidden);
  shared.mixed = planner.take<float>(count * hidden);
  shared.logits = planner.take<float>(rows * static_cast<std::size_t>(padded(s.logits)));
  if (model_.images()) {
    const auto area = static_cast<std::size_t>(s.image_height + 2) * static_cast<std::size_t>(s.image_width + 2);
    const auto channels = static_cast<std::size_t>(std::max(s.image_channels, kImageChannels[kImageBlocks - 1]));
    for (float*& image : shared.images) image = planner.take<float>(area * channels);
    shared.features = planner.take<float>(rows * static_cast<std::size_t>(s.image_features));
  }
}

std::vector<StateTensor> describe_state(const Model& model) {
  const Sizes& s = model.sizes();
  const auto window = static_cast<std::size_t>(s.conv_kernel - 1);
  const auto hidden = static_cast<std::size_t>(s.hidden);
  const auto heads = static_cast<std::size_t>(s.heads);
  const auto width = static_cast<std::size_t>(s.head_width);
  std::vector<StateTensor> tensors;
  for (std::size_t block = 0; block < model.blocks.size(); ++block) {
    const auto add = [&](const char* part, std::vector<std::size_t> extents, float initial = 0) {
      std::size_t size = 1;
      for (const std::size_t extent : extents) size *= extent;
      const std::string name = "state." + std::to_string(block) + "." + part;
      tensors.push_back({name, std::move(extents), initial, size, nullptr, *part == 'C', *part == 'm'});
    };
    if (model.blocks[block].is_slstm) {
      add("conv", {window, hidden});
      for (const char* part : {"y", "c", "n"}) add(part, {hidden});
      add("m", {hidden}, kSlstmInitialM);
    } else {
      add("conv", {window, heads * width});
      add("C", {heads, width, width});
      add("n", {heads, width});
      add("m", {heads});
    }
  }
  return tensors;
}

template <class Work>
void State::for_each_lazy_cell(Work work) const {
  const Sizes& s = model_.sizes();
  for (std::size_t block = 0; block < blocks.size(); ++block)
    for (int cell = 0; cell < batch_ * s.heads && blocks[block].lazy.C != nullptr; ++cell)
      work(LazyCell(blocks[block].lazy, static_cast<int>(block), cell, s.head_width, model_.kernels().memory_columns),
           cell);
}

void State::require(const float* is_first) const {
  for (int row = 0; row < batch_; ++row)
    if (lost(row) && (is_first == nullptr || is_first[row] == 0))
      throw Error(LRAM_ERROR_OVERFLOW, "state: row " + std::to_string(row) +
                                           " was lost in an earlier step; reset it, load one, or start an episode");
}

void State::reset(int row) {
  set_lost(row, false);
  for (const StateTensor& tensor : tensors_)
    if (tensor.data != nullptr)
      std::fill_n(tensor.data + static_cast<std::size_t>(row) * tensor.size, tensor.size, tensor.initial);
  for_each_lazy_cell([&](LazyCell lazy, int cell) {
    if (cell / model_.sizes().heads == row) lazy.reset();
  });
}

void State::save(float* values) const {
  require(nullptr);
  const int width = model_.sizes().head_width;
  const auto matrix = static_cast<std::size_t>(width) * static_cast<std::size_t>(width);
  std::vector<float*> matrices;
  for (const StateTensor& tensor : tensors_) {
    const std::size_t count = tensor.size * static_cast<std::size_t>(batch_);
    if (tensor.matrices) matrices.push_back(values);
    if (tensor.matrices && tensor.data != nullptr) {
      for (std::size_t at = 0; at < count; at += matrix)
        for_each_tiled(width, model_.kernels().memory_columns, [&](int row, int column, std::size_t position, int) {
          values[at + static_cast<std::size_t>(row * width + column)] = tensor.data[at + position];
        });
    } else if (tensor.data != nullptr) {
      std::copy_n(tensor.data, count, values);
    }
    values += count;
  }
  auto next = matrices.begin();
  for_each_lazy_cell([&](const LazyCell& lazy, int cell) {
    lazy.save(*next + static_cast<std::size_t>(cell) * matrix);
    if (cell + 1 == batch_ * model_.sizes().heads) ++next;
  });
}

void State::load(const float* values) {
  const float* at = values;
  for (const StateTensor& tensor : tensors_) {
    const std::size_t count = tensor.size * static_cast<std::size_t>(batch_);
    for (std::size_t i = 0; i < count; ++i) {
      const char* problem = !std::isfinite(at[i])                                   ? "finite values"
                            : !tensor.stabilizer && !(std::fabs(at[i]) <= kLargest) ? "magnitudes up to 1e+17"
                                                                                    : nullptr;
      if (problem != nullptr)
        throw Error(LRAM_ERROR_STATE, tensor.name + ": expected " + problem + ", got " + shown(at[i]) + " at element " +
                                          std::to_string(i));
    }
    at += count;
  }
  lost_.assign(lost_.size(), false);
  const int width = model_.sizes().head_width;
  const auto matrix = static_cast<std::size_t>(width) * static_cast<std::size_t>(width);
  std::vector<const float*> matrices;
  for (const StateTensor& tensor : tensors_) {
    const std::size_t count = tensor.size * static_cast<std::size_t>(batch_);
    if (tensor.matrices) matrices.push_back(values);
    if (tensor.matrices && tensor.data != nullptr) {
      for (std::size_t start = 0; start < count; start += matrix)
        for_each_tiled(width, model_.kernels().memory_columns, [&](int row, int column, std::size_t position, int) {
          tensor.data[start + position] = values[start + static_cast<std::size_t>(row * width + column)];
        });
    } else if (tensor.data != nullptr) {
      std::copy_n(values, count, tensor.data);
    }
    values += count;
  }
  auto next = matrices.begin();
  for_each_lazy_cell([&](LazyCell lazy, int cell) {
    lazy.load(*next + static_cast<std::size_t>(cell) * matrix);
    if (cell + 1 == batch_ * model_.sizes().heads) ++next;
  });
}

}  // namespace lram
