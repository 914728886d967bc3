// What a block of another backbone may be: its own state, which need not start at zeros, and other tokens than LRAM's.
#include <algorithm>
#include <cstring>

#include "block.h"
#include "step.h"
#include "testing.h"

using namespace lram_testing;

namespace {

constexpr std::uint32_t kKind = 1000;
constexpr std::uint32_t kTrace = lram::kFirstBlockRole;
constexpr std::uint32_t kWindow = lram::kFirstBlockRole + 1;
constexpr int kHidden = 64;
constexpr int kRows = 2;  // of the window

// A running mean of its tokens that starts with a tensor of the artifact; a window of the last two of them, which lies
// in a layout of its own (last element first) and starts with another tensor; and a count, which starts at 3.
class TraceBlock : public lram::Block {
 public:
  static std::unique_ptr<lram::Block> make(lram::BlockSource& source) {
    source.expect_no_more();
    return std::make_unique<TraceBlock>(source.plain(kTrace, kHidden), source.plain(kWindow, kRows * kHidden));
  }

  TraceBlock(const float* trace, const float* window)
      : Block({{"trace", {kHidden}, 0, trace}, {"window", {kRows, kHidden}, 0, window}, {"count", {1}, 3}}, {}),
        window_(window) {}

  std::unique_ptr<lram::BlockMemory> plan(lram::Planner& planner, int batch) const override {
    auto memory = std::make_unique<Memory>();
    const auto rows = static_cast<std::size_t>(batch);
    auto* trace = planner.take<float>(rows * kHidden);
    memory->window = planner.take<float>(rows * kSize);
    memory->parts = {trace, nullptr, planner.take<float>(rows)};
    return memory;
  }

  void run(lram::StepContext& context, lram::BlockMemory& memory, int thread) const override {
    lram::State& state = context.state;
    const lram::Artifact& artifact = context.model.artifact();
    float* x = state.threads[static_cast<std::size_t>(thread)].x;
    for (int row = 0; row < state.batch() && thread == 0; ++row) {
      if (context.first(row)) restart(memory, row);
      float* trace = memory.parts[0] + row * kHidden;
      float* window = static_cast<Memory&>(memory).window + static_cast<std::size_t>(row) * kSize;
      for (int token = 0; token < artifact.tokens(); ++token) {
        const int at = (row * artifact.tokens() + token) * kHidden;
        const bool skipped = context.first(row) && artifact.token(token).skipped_at_start();
        for (int i = 0; i < kHidden; ++i) {
          if (!skipped) trace[i] = 0.5F * trace[i] + 0.5F * x[at + i];
          state.mixed[at + i] = trace[i] + window[i];
        }
        if (skipped) continue;
        std::rotate(window, window + kHidden, window + kSize);
        std::copy_n(x + at, kHidden, window);
        ++memory.parts[2][row];
      }
    }
    context.barrier(thread);
    context.kernels.accumulate(x, state.mixed, 0, 1, state.tokens() * kHidden);
    context.barrier(thread);
  }

 protected:
  void restart_own(lram::BlockMemory& memory, std::size_t part, int row) const override {
    load_own(memory, part, row, window_);
  }
  void save_own(const lram::BlockMemory& memory, std::size_t /*part*/, int row, float* values) const override {
    const float* window = static_cast<const Memory&>(memory).window + static_cast<std::size_t>(row) * kSize;
    std::reverse_copy(window, window + kSize, values);
  }
  void load_own(lram::BlockMemory& memory, std::size_t /*part*/, int row, const float* values) const override {
    std::reverse_copy(values, values + kSize,
                      static_cast<Memory&>(memory).window + static_cast<std::size_t>(row) * kSize);
  }

 private:
  static constexpr std::size_t kSize = kRows * kHidden;
  struct Memory : lram::BlockMemory {
    float* window = nullptr;
  };

  const float* window_;
};

const bool kKnown = [] {
  lram::block_kinds().push_back({kKind, TraceBlock::make});
  return true;
}();

constexpr lram::TokenEntry kObservation = {0, 0};
constexpr lram::TokenEntry kReturnToGo = {1, 0};
constexpr lram::TokenEntry kReward = {2, 1};

Shape traces(std::vector<lram::TokenEntry> tokens, std::uint32_t read) {
  Shape shape;
  shape.hidden = kHidden;
  shape.blocks = 2;
  shape.kind = kKind;
  shape.tensors = {{kTrace, kHidden}, {kWindow, kRows * kHidden}};
  shape.tokens = std::move(tokens);
  shape.read_token = read;
  return shape;
}

std::vector<Shape> all_tokens() {
  return {traces({kObservation}, 0), traces({kObservation, kReturnToGo}, 0),
          traces({kReturnToGo, kReward, kObservation}, 2), traces({kReward, kObservation, kReturnToGo}, 2)};
}

// What a row of a new state holds, by the model's description.
std::vector<float> described_start(const ModelPointer& model) {
  lram_description about;
  CHECK_OK(lram_describe(model.get(), &about));
  std::vector<float> values;
  for (std::size_t i = 0; i < about.state_tensors; ++i) {
    lram_tensor tensor;
    CHECK_OK(lram_state_tensor(model.get(), i, &tensor));
    std::size_t size = 1;
    for (int axis = 0; axis < tensor.rank; ++axis) size *= tensor.extents[axis];
    CHECK(tensor.initial_values == nullptr || tensor.initial == 0);
    for (std::size_t k = 0; k < size; ++k)
      values.push_back(tensor.initial_values == nullptr ? tensor.initial : tensor.initial_values[k]);
  }
  CHECK(values.size() == about.state_size);
  return values;
}

std::string refusal(const Shape& shape) {
  const TemporaryFile file(make_artifact(shape));
  lram_model* model = nullptr;
  CHECK(lram_open(file.path().c_str(), nullptr, &model) == LRAM_ERROR_ARTIFACT && model == nullptr);
  lram_close(model);
  return lram_last_error();
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(a_state_starts_with_the_values_that_are_described) {
  for (const Shape& shape : all_tokens()) {
    const TemporaryFile file(make_artifact(shape));
    const ModelPointer model = open_model(file, "");
    const std::vector<float> start = described_start(model);
    CHECK(std::count(start.begin(), start.end(), 3.0F) == 2 && start[0] != 0 && start[kHidden] != 0);
    Driver driver(model, 1);
    CHECK(driver.save() == start);
    driver.step(0);
    CHECK(driver.save() != start);
    CHECK_OK(lram_state_reset(driver.state.get(), nullptr, 0));
    CHECK(driver.save() == start);
  }
}

TEST(a_row_starts_anew_alone) {
  for (const Shape& shape : all_tokens()) {
    const TemporaryFile file(make_artifact(shape));
    const ModelPointer model = open_model(file, "");
    Driver by_reset(model, 2);
    Driver by_step(model, 2);
    for (unsigned step = 0; step < 5; ++step) CHECK(by_reset.step(step) == by_step.step(step));
    const int row = 1;
    CHECK_OK(lram_state_reset(by_reset.state.get(), &row, 1));
    CHECK(by_reset.save() != by_step.save());
    CHECK(by_reset.step(5, {1}) == by_step.step(5, {1}));
    CHECK(by_reset.save() == by_step.save());
    Driver fresh(model, 1);
    const std::vector<float> logits = fresh.step(5, {0}, 1);
    const std::vector<float> both = by_step.step(5, {1});
    CHECK(std::equal(logits.begin(), logits.end(), both.end() - static_cast<std::ptrdiff_t>(logits.size())));
  }
}

TEST(a_saved_state_of_any_block_continues_the_run) {
  for (const Shape& shape : all_tokens()) {
    const TemporaryFile file(make_artifact(shape));
    const ModelPointer model = open_model(file, "", 3);
    Driver one(model, 2);
    Driver two(model, 2);
    for (unsigned step = 0; step < 5; ++step) one.step(step);
    const std::vector<float> saved = one.save();
    CHECK_OK(lram_state_load(two.state.get(), saved.data(), saved.size()));
    CHECK(two.save() == saved);
    lram_state* cloned = nullptr;
    CHECK_OK(lram_state_clone(one.state.get(), &cloned));
    Driver three(model, 2);
    three.state.reset(cloned);
    for (unsigned step = 5; step < 9; ++step) {
      const std::vector<float> logits = one.step(step);
      CHECK(logits == two.step(step) && logits == three.step(step));
    }
  }
}

TEST(what_a_policy_does_not_read_may_be_null) {
  for (const Shape& shape : all_tokens()) {
    const TemporaryFile file(make_artifact(shape));
    const ModelPointer model = open_model(file, "");
    const Driver driver(model, 1);
    const auto reads = [&](lram::Input input) {
      return std::any_of(shape.tokens.begin(), shape.tokens.end(), [&](const lram::TokenEntry& token) {
        return token.input == static_cast<std::uint32_t>(input);
      });
    };
    const bool return_to_go = reads(lram::Input::return_to_go);
    const bool reward = reads(lram::Input::reward);
    CHECK((driver.about.reads_return_to_go != 0) == return_to_go && (driver.about.reads_reward != 0) == reward);
    const std::vector<float> observation(driver.about.observation_size, 0.5F);
    float action[3] = {};
    const float one = 1;
    const float zero = 0;
    const float nan = std::nanf("");
    const lram_outputs outputs = {action, nullptr};
    const auto step = [&](const float* of_return, const float* of_reward) {
      const lram_inputs inputs = {observation.data(), of_return, of_reward, &zero};
      return lram_step(driver.state.get(), &inputs, &outputs);
    };
    CHECK(step(return_to_go ? &one : nullptr, reward ? &one : nullptr) == LRAM_OK);
    CHECK(step(return_to_go ? &one : &nan, reward ? &one : &nan) == LRAM_OK);  // nor is it looked at
    CHECK(step(nullptr, &one) == (return_to_go ? LRAM_ERROR_ARGUMENT : LRAM_OK));
    CHECK(step(&one, nullptr) == (reward ? LRAM_ERROR_ARGUMENT : LRAM_OK));
  }
}

TEST(tokens_that_make_no_step_are_refused) {
  CHECK(has(refusal(traces({kReward}, 0)), "tokens: expected one that embeds the observation"));
  CHECK(has(refusal(traces({kObservation, kObservation}, 0)), "token 1: input: an earlier token embeds it, too"));
  CHECK(has(refusal(traces({kObservation, {3, 0}}, 0)), "token 1: input: unknown: 3"));
  CHECK(has(refusal(traces({{0, 1}}, 0)), "token 0: presence: an observation is there in every step"));
  CHECK(has(refusal(traces({kObservation, {1, 3}}, 0)), "token 1: presence: expected 0 to 2, got 3"));
  CHECK(has(refusal(traces({kObservation}, 1)), "read_token: expected less than 1, got 1"));
  CHECK(has(refusal(traces({kObservation, kReward}, 1)), "read_token: expected a token that is there in every step"));
  CHECK(has(refusal(traces(std::vector<lram::TokenEntry>(17, kObservation), 0)),
            "token_count: expected 1 to 16, got 17"));
  CHECK(has(refusal(traces({}, 0)), "token_count: expected 1 to 16, got 0"));
}

TEST(blocks_that_are_not_known_are_refused) {
  Shape shape = traces({kObservation}, 0);
  shape.kind = kKind + 1;
  CHECK(has(refusal(shape), "block 0: kind: unknown: 1001"));
  shape.blocks = 0;
  CHECK(has(refusal(shape), "block_count: expected 1 to 256, got 0"));
  shape.blocks = 257;
  CHECK(has(refusal(shape), "block_count: expected 1 to 256, got 257"));
  shape = traces({kObservation}, 0);
  shape.tensors.pop_back();
  CHECK(has(refusal(shape), "tensor 33 of block 0: missing"));
}

TEST(xlstm_blocks_refuse_tokens_that_their_kernels_do_not_unroll) {
  Shape shape;
  shape.tokens = {kObservation};
  shape.read_token = 0;
  CHECK(has(refusal(shape), "block 0: an xLSTM block takes 3 tokens per step, of which the first is skipped"));
  shape.tokens = {kObservation, kReward, kReturnToGo};
  CHECK(has(refusal(shape), "block 0: an xLSTM block takes 3 tokens per step, of which the first is skipped"));
}

TEST(numbers_of_a_block_are_checked) {
  const std::vector<std::uint8_t> whole = make_artifact({});
  const std::size_t blocks = sizeof(lram::FileHeader) + 3 * sizeof(lram::TokenEntry);
  const auto refused = [&](int block, int word, std::uint32_t value, const char* text) {
    std::vector<std::uint8_t> bytes = whole;
    const std::size_t at = blocks + static_cast<std::size_t>(block) * sizeof(lram::BlockEntry);
    std::memcpy(bytes.data() + at + 4 * static_cast<std::size_t>(word), &value, sizeof value);
    seal(bytes);
    const TemporaryFile file(bytes);
    lram_model* model = nullptr;
    CHECK(lram_open(file.path().c_str(), nullptr, &model) == LRAM_ERROR_ARTIFACT && model == nullptr);
    CHECK(has(lram_last_error(), text));
  };
  const auto bits = [](float value) {
    std::uint32_t found = 0;
    std::memcpy(&found, &value, sizeof found);
    return found;
  };
  refused(0, 1, 0, "block 0: heads: expected 1 to 1024, got 0");
  refused(0, 1, 0xffffffffU, "block 0: heads: expected 1 to 1024, got 4294967295");
  refused(0, 2, 0x80000000U, "block 0: head width: expected 1 to 16384, got 2147483648");
  refused(0, 3, 65, "block 0: conv_kernel: expected 2 to 64, got 65");
  refused(0, 4, 3, "block 0: qkv_block: expected 0 or a divisor of 128, got 3");
  refused(0, 5, 1, "block 0: expected zeros after its numbers");
  refused(0, 12, bits(-1e-5F), "block 0: norm_epsilon: expected a small positive number");
  refused(0, 13, bits(INFINITY), "block 0: head_epsilon: expected a small positive number");
  refused(0, 15, bits(1e-5F), "block 0: expected zeros after its numbers");
  refused(1, 1, 5, "block 1: heads: expected to divide 64, got 5");
  refused(1, 3, 0, "block 1: ffn_slices: expected 1 to 64, got 0");
  refused(1, 4, 1U << 17, "block 1: ffn_slice: expected 16 to 65536 in steps of 16, got 131072");
  refused(1, 5, 6, "block 1: ffn_activation: expected 0 to 5, got 6");
  refused(1, 0, 1, "block 1: ");  // the other kind has other numbers
}

int main() { return run_all(); }
