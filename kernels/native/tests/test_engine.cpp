// The whole step: every instruction set against plain C++, batches, resets, states.
#include <cmath>
#include <cstring>
#include <utility>

#include "half.h"
#include "testing.h"

using namespace lram_testing;
using lram::Layout;

namespace {

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (const Layout layout : {Layout::tiled_float32, Layout::tiled_int8, Layout::tiled_int8g, Layout::tiled_int4})
    for (const int planes : {2, 1}) {
      Shape s;
      s.layout = layout;
      s.planes = planes;
      if (layout == Layout::tiled_float32 && planes == 1) {  // widths that leave remainders everywhere
        s.hidden = 48;
        s.heads = 3;
        s.inner = 3 * 80;
        s.slstm_at = {};
      }
      if (layout == Layout::tiled_int4) {  // heads of whole groups
        s.heads = 2;
        s.slstm_at = {2};
      }
      all.push_back(s);
    }
  for (const int hidden : {80, 96}) {  // sLSTM heads of 10, 20, 12 and 24 channels
    for (const int heads : {8, 4}) {
      Shape narrow;
      narrow.hidden = hidden;
      narrow.slstm_heads = heads;
      narrow.slstm_at = {0, 2};
      all.push_back(narrow);
    }
  }
  for (const Layout layout : {Layout::tiled_float32, Layout::tiled_int8, Layout::tiled_int8g, Layout::tiled_int4})
    for (const int width : {6, 33}) {  // no width is a multiple of 16
      Shape odd;
      odd.layout = layout;
      odd.hidden = 5 * 17;
      odd.heads = 3;
      odd.inner = 3 * width;
      odd.slstm_heads = 5;
      odd.block = width == 6 ? 9 : 0;  // across heads
      odd.conv_kernel = width;
      all.push_back(odd);
    }
  Shape smallest;  // one head, one slice, one of everything
  smallest.hidden = smallest.inner = 16;
  smallest.blocks = smallest.heads = 1;
  smallest.slstm_at = {};
  all.push_back(smallest);
  Shape observant;
  observant.layout = Layout::tiled_int8;
  observant.large_observation = true;
  all.push_back(observant);
  Shape image;
  image.images = image.discrete = true;
  all.push_back(image);
  image.layout = Layout::tiled_int8;
  all.push_back(image);
  for (const Layout layout : {Layout::tiled_float32, Layout::tiled_int8, Layout::tiled_int8g, Layout::tiled_int4})
    for (const bool cached : {true, false}) all.push_back(transformer(cached, layout));
  return all;
}

}  // namespace

TEST(every_instruction_set_computes_what_plain_code_does) {
  for (const Shape& shape : shapes())
    for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF}) {
      const TemporaryFile file(make_artifact(shape));
      for (const std::string& isa : supported_isas()) {
        const ModelPointer plain = open_model(file, "plain", 1, format);
        const ModelPointer other = open_model(file, isa.c_str(), 1, format);
        Driver expected(plain, 2);
        Driver actual(other, 2);
        CHECK(actual.about.isa == isa);
        double worst = 0;
        for (unsigned step = 0; step < 40; ++step) {
          const std::vector<int> first = step == 0    ? std::vector<int>{0, 1}
                                         : step == 20 ? std::vector<int>{1}
                                                      : std::vector<int>{};
          worst = std::max(worst, relative_error(expected.step(step, first), actual.step(step, first)));
        }
        const double state = relative_error(expected.save(), actual.save());
        // where activations are rounded, a last bit decides now and then which code is next
        const double bound = shape.layout == Layout::tiled_float32 && format == LRAM_STATE_FLOAT32 ? 2e-5
                             : shape.planes == 1 && shape.layout != Layout::tiled_float32          ? 3e-2
                                                                                                   : 2e-3;
        CHECK(worst < bound);
        CHECK(state < bound);
      }
    }
}

TEST(rows_of_a_batch_are_what_they_are_alone) {
  for (const Shape& shape : shapes()) {
    const TemporaryFile file(make_artifact(shape));
    for (const std::string& isa : supported_isas()) {
      const ModelPointer model = open_model(file, isa.c_str(), 2);
      constexpr int kBatch = 4;
      Driver together(model, kBatch);
      std::vector<std::vector<float>> all;
      for (unsigned step = 0; step < 6; ++step)
        all.push_back(together.step(step, step == 3 ? std::vector<int>{2} : std::vector<int>{}));
      for (int row = 0; row < kBatch; ++row) {
        Driver alone(model, 1);
        for (unsigned step = 0; step < 6; ++step) {
          const auto logits = alone.step(step, step == 3 && row == 2 ? std::vector<int>{0} : std::vector<int>{}, row);
          const auto start = all[step].begin() + static_cast<std::ptrdiff_t>(logits.size()) * row;
          CHECK(std::equal(logits.begin(), logits.end(), start));
        }
      }
    }
  }
}

TEST(a_row_that_starts_an_episode_forgets_everything) {
  for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF}) {
    const TemporaryFile file(make_artifact({}));
    const ModelPointer model = open_model(file, "", 1, format);
    Driver fresh(model, 1);
    Driver used(model, 1);
    for (unsigned step = 0; step < 21; ++step) used.step(step);
    for (unsigned step = 0; step < 20; ++step) {
      const std::vector<int> first = step == 0 ? std::vector<int>{0} : std::vector<int>{};
      CHECK(fresh.step(step, first) == used.step(step, first));
    }
    CHECK_OK(lram_state_reset(used.state.get(), nullptr, 0));
    Driver reset(model, 1);
    CHECK(reset.save() == used.save());
  }
}

TEST(a_saved_state_continues_the_run) {
  const TemporaryFile file(make_artifact({}));
  for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF}) {
    const ModelPointer model = open_model(file, "", 1, format);
    Driver one(model, 2);
    Driver two(model, 2);
    for (unsigned step = 0; step < 27; ++step) one.step(step, step == 19 ? std::vector<int>{1} : std::vector<int>{});
    const std::vector<float> saved = one.save();
    CHECK_OK(lram_state_load(two.state.get(), saved.data(), saved.size()));
    CHECK(relative_error(saved, two.save()) < (format == LRAM_STATE_FLOAT32 ? 1e-12 : 1e-3));
    lram_state* copied = nullptr;
    CHECK_OK(lram_state_clone(one.state.get(), &copied));
    two.state.swap(one.state);  // `two` goes on, `one` holds what was loaded
    const StatePointer clone(copied, lram_state_free);
    Driver three(model, 2);
    three.state.reset(nullptr);
    lram_state* again = nullptr;
    CHECK_OK(lram_state_clone(clone.get(), &again));
    three.state.reset(again);
    for (unsigned step = 27; step < 47; ++step) {
      const std::vector<float> went_on = two.step(step);
      CHECK(went_on == three.step(step));
      CHECK(relative_error(went_on, one.step(step)) < (format == LRAM_STATE_FLOAT32 ? 1e-12 : 5e-3));
    }
  }
}

TEST(a_lazy_state_stays_near_float32_and_does_not_drift) {
  Shape shape;
  shape.slstm_at = {};
  const TemporaryFile file(make_artifact(shape));
  const ModelPointer exact = open_model(file, "");
  const ModelPointer lazy = open_model(file, "", 1, LRAM_STATE_LAZY_HALF);
  Driver expected(exact, 1);
  Driver actual(lazy, 1);
  double early = 0;
  double late = 0;
  for (unsigned step = 0; step < 3000; ++step) {
    const double error = relative_error(expected.step(step), actual.step(step));
    CHECK(error < 5e-3);
    if (step >= 1000 && step < 2000) early = std::max(early, error);
    if (step >= 2000) late = std::max(late, error);
  }
  CHECK(late < 2 * early);
}

TEST(bad_input_is_named_and_changes_nothing) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "");
  Driver driver(model, 1);
  driver.step(0);
  const std::vector<float> before = driver.save();
  std::vector<float> observation(driver.about.observation_size, 0);
  std::vector<float> action(driver.about.action_size);
  float zero = 0;
  float half = 0.5F;
  float nan = std::nanf("");
  const lram_outputs outputs = {action.data(), nullptr};
  const auto refused = [&](lram_inputs inputs, lram_status status, const char* text) {
    CHECK(lram_step(driver.state.get(), &inputs, &outputs) == status);
    CHECK(std::string(lram_last_error()).find(text) == 0);
    CHECK(driver.save() == before);
  };
  refused({observation.data(), &nan, &zero, &zero}, LRAM_ERROR_INPUT, "return_to_go: expected finite");
  refused({observation.data(), &zero, &nan, &zero}, LRAM_ERROR_INPUT, "reward: expected finite");
  refused({observation.data(), &zero, &zero, &half}, LRAM_ERROR_INPUT, "is_first: expected 0 or 1");
  refused({nullptr, &zero, &zero, &zero}, LRAM_ERROR_ARGUMENT, "observation: expected an array");
  observation[3] = INFINITY;
  refused({observation.data(), &zero, &zero, &zero}, LRAM_ERROR_INPUT,
          "observation: expected finite values, got inf at element 3");
  std::vector<float> wrong(before.size() - 1);
  CHECK(lram_state_load(driver.state.get(), wrong.data(), wrong.size()) == LRAM_ERROR_STATE);
  wrong = before;
  wrong[5] = nan;
  CHECK(lram_state_load(driver.state.get(), wrong.data(), wrong.size()) == LRAM_ERROR_STATE);
  CHECK(std::string(lram_last_error()).find("state.0.conv: expected finite") == 0);
  const int row = 1;
  CHECK(lram_state_reset(driver.state.get(), &row, 1) == LRAM_ERROR_ARGUMENT);
  CHECK(driver.save() == before);
}

TEST(sums_of_codes_are_exact_up_to_the_most_columns) {
  constexpr int kCols = lram::kMostInt8Columns;
  constexpr int kTokensHere = 1;
  std::vector<std::uint8_t> tile(static_cast<std::size_t>(lram::tile_bytes(Layout::tiled_int8, kCols)) + 4096);
  const auto at = [&](int row, int column) { return 256 + column / 4 * 128 + row * 4 + column % 4; };
  for (int row = 0; row < 32; ++row) {
    const float scale = 1;
    const std::int32_t sum = static_cast<std::int32_t>(static_cast<std::uint32_t>(-128LL * 127 * kCols));
    std::memcpy(tile.data() + 4 * row, &scale, 4);
    std::memcpy(tile.data() + 128 + 4 * row, &sum, 4);
    for (int column = 0; column < kCols; ++column) tile[static_cast<std::size_t>(at(row, column))] = 127;
  }
  const std::vector<float> x(kCols + 64, 1.0F);
  int count = 0;
  const lram::Candidate* candidates = lram::candidates(&count);
  for (int i = 0; i < count; ++i) {
    if (!candidates[i].supported()) continue;
    for (const int planes : {1, 2}) {
      const lram::Matrix matrix = {lram::Format::int8, 32, kCols, 1, tile.size(), tile.data(), planes};
      std::vector<std::int8_t> codes(2 * (kCols + 256));
      float scale = 0;
      std::int32_t sums[4] = {};
      const lram::Tokens tokens = {kTokensHere, x.data(), x.size(), planes, codes.data(), kCols + 256, &scale, sums};
      std::vector<float> y(64);
      candidates[i].kernels->quantize(tokens, matrix.format, kCols);
      candidates[i].kernels->dense(matrix, 0, 1, tokens, y.data(), 32);
      for (int row = 0; row < 32; ++row)
        CHECK(std::fabs(y[static_cast<std::size_t>(row)] / (127.0 * kCols) - 1) < 1e-6);
    }
  }
}

// However many tokens a matrix is multiplied with at once, and by which instructions.
TEST(a_token_comes_to_the_same_bits_among_any_number) {
  using lram::Format;
  constexpr int kMost = 43;
  constexpr int kTiles = 2;
  constexpr int kOutputs = kTiles * lram::kTileRows;
  const std::pair<Layout, Format> formats[] = {{Layout::tiled_float32, Format::float32},
                                               {Layout::tiled_int8, Format::int8},
                                               {Layout::tiled_int8g, Format::int8g},
                                               {Layout::tiled_int4, Format::int4}};
  int count = 0;
  const lram::Candidate* candidates = lram::candidates(&count);
  for (const std::pair<Layout, Format>& kind : formats)
    for (const int cols : {16, 64, 208, 400}) {
      const Layout layout = kind.first;
      const Format format = kind.second;
      const std::size_t bytes = lram::tile_bytes(layout, static_cast<std::uint64_t>(cols));
      std::vector<std::uint8_t> tiles = random_tiles(layout, kOutputs, cols, cols, 7);
      tiles.resize(tiles.size() + 4096);
      const auto stride = static_cast<std::size_t>(cols);
      std::vector<float> x(kMost * stride);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i * i % 1009));
      for (int i = 0; i < count; ++i) {
        if (!candidates[i].supported()) continue;
        const lram::Kernels& kernels = *candidates[i].kernels;
        for (const int planes : {1, 2}) {
          const lram::Matrix matrix = {format, kOutputs, cols, kTiles, bytes, tiles.data(), planes};
          std::vector<std::int8_t> codes(kMost * 2 * (stride + lram::kGroup));
          std::vector<float> scales(kMost);
          std::vector<std::int32_t> sums(kMost * 2 * (stride / lram::kGroup + 1));
          const auto product = [&](int first, int tokens) {
            const lram::Tokens some = {tokens,        x.data() + static_cast<std::size_t>(first) * stride,
                                       stride,        planes,
                                       codes.data(),  stride + lram::kGroup,
                                       scales.data(), sums.data()};
            std::vector<float> y(static_cast<std::size_t>(tokens * kOutputs));
            kernels.quantize(some, format, cols);
            kernels.dense(matrix, 0, kTiles, some, y.data(), kOutputs);
            return y;
          };
          std::vector<float> alone;
          for (int token = 0; token < kMost; ++token)
            for (const float value : product(token, 1)) alone.push_back(value);
          for (const int tokens : {2, 3, 8, 17, 24, 32, kMost}) {
            const std::vector<float> together = product(0, tokens);
            CHECK(std::equal(together.begin(), together.end(), alone.begin()));
          }
        }
      }
    }
}

TEST(halves_round_to_nearest_even) {
  for (unsigned h = 0; h < 0x7c00; ++h) {
    const float value = lram::half_to_float(static_cast<std::uint16_t>(h));
    CHECK(lram::float_to_half(value) == h);
    CHECK(lram::float_to_half(-value) == (h | 0x8000U));
    const float next = lram::half_to_float(static_cast<std::uint16_t>(h + 1));
    if (h + 1 < 0x7c00) CHECK(lram::float_to_half((value + next) / 2) == h + h % 2);
  }
  CHECK(lram::float_to_half(70000.0F) == 0x7c00);
}

int main() { return run_all(); }

// What an artifact says of observations and actions is done in the step, the same in every thread.
TEST(observations_are_normalized_and_actions_looked_up) {
  Shape plain;
  Shape robot = plain;
  robot.interface = true;
  const TemporaryFile without(make_artifact(plain));
  const TemporaryFile with(make_artifact(robot));
  for (const std::string& isa : supported_isas())
    for (const int threads : {1, 2}) {
      const ModelPointer model = open_model(without, isa.c_str(), threads, LRAM_STATE_FLOAT32);
      const ModelPointer knowing = open_model(with, isa.c_str(), threads, LRAM_STATE_FLOAT32);
      const Driver one(model, 2);
      const Driver other(knowing, 2);
      std::vector<float> raw(2 * one.about.observation_size);
      std::vector<float> normalized(raw.size());
      std::vector<float> logits[2];
      std::vector<float> action[2];
      for (auto* buffers : {&logits[0], &logits[1]}) buffers->resize(2 * one.about.logits_size);
      for (auto* buffers : {&action[0], &action[1]}) buffers->resize(2 * one.about.action_size);
      for (int step = 0; step < 5; ++step) {
        for (std::size_t i = 0; i < raw.size(); ++i) {
          raw[i] = 0.37F * static_cast<float>((i * 7 + static_cast<std::size_t>(step)) % 23) - 4;
          normalized[i] = std::clamp((raw[i] - 0.5F) / 2, -1.5F, 1.5F);
        }
        const float numbers[2] = {0.5F, 0.25F};
        const float first[2] = {step == 0 ? 1.0F : 0.0F, step == 2 ? 1.0F : 0.0F};
        const lram_inputs given = {normalized.data(), numbers, numbers, first};
        const lram_inputs as_it_is = {raw.data(), numbers, numbers, first};
        const lram_outputs found = {action[0].data(), logits[0].data()};
        const lram_outputs wanted = {action[1].data(), logits[1].data()};
        CHECK(lram_step(one.state.get(), &given, &found) == LRAM_OK);
        CHECK(lram_step(other.state.get(), &as_it_is, &wanted) == LRAM_OK);
        CHECK(logits[0] == logits[1]);
        CHECK(action[1] == std::vector<float>(action[1].size(), 7));
      }
    }
}
