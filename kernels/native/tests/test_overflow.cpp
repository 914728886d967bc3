// Arithmetic that leaves float32: refused before the state is touched where an input is to blame, and never an action
// made of what is no number.
#include <cstring>
#include <limits>

#include "state.h"
#include "testing.h"

using namespace lram_testing;

namespace {

constexpr std::size_t kStride = 127;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// One model of every kind of weights, of observations and of states, on every instruction set.
template <class Check>
void for_each_kind(Check check) {
  for (const lram::Layout layout : {lram::Layout::tiled_float32, lram::Layout::tiled_int8, lram::Layout::tiled_int4})
    for (const bool images : {false, true})
      for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF}) {
        if (images && layout != lram::Layout::tiled_int8) continue;  // one kind of images will do
        Shape shape;
        shape.layout = layout;
        shape.images = shape.discrete = images;
        if (layout == lram::Layout::tiled_int4) shape.inner = 256;
        const TemporaryFile file(make_artifact(shape));
        for (const std::string& isa : supported_isas()) check(open_model(file, isa.c_str(), 1, format), format);
      }
}

// How many floats of a state of two rows are the codes of 16 bits in which lazy states keep the keys and values of the
// last 16 steps, three tokens each: every pattern of bits is a number there. Blocks 0 and 2 have them, see Shape.
std::size_t floats_of_codes(const ModelPointer& model) {
  std::size_t floats = 0;
  for (const lram::StateField& field : model->engine->state_fields())
    if (field.name == "state.0.n" || field.name == "state.2.n") floats += 2 * 2 * 16 * 3 * field.size() / 2;
  return floats;
}

bool told(const std::string& text) { return std::string(lram_last_error()).find(text) != std::string::npos; }

// A state of two rows after a few steps, and what its steps read and write.
struct Loop {
  explicit Loop(const ModelPointer& model) : driver(model, 2) {
    for (unsigned step = 0; step < 19; ++step) driver.step(step);
    const std::size_t size = 2 * driver.about.observation_size;
    observation.assign(size, 0.5F);
    image.assign(size, 128);
    action.resize(2 * driver.about.action_size);
    logits.resize(2 * driver.about.logits_size);
  }

  lram_status step() {
    const bool images = driver.about.observation == LRAM_IMAGE;
    const void* observed = images ? static_cast<const void*>(image.data()) : observation.data();
    const lram_inputs inputs = {observed, return_to_go, reward, is_first};
    const lram_outputs outputs = {action.data(), logits.data()};
    return lram_step(driver.state.get(), &inputs, &outputs);
  }

  // The recurrent memory as it lies.
  float* memory() const { return driver.state->episodes->memory(); }
  std::size_t memory_floats() const { return driver.state->episodes->memory_floats(); }

  Driver driver;
  std::vector<float> observation;
  std::vector<std::uint8_t> image;
  float return_to_go[2] = {0.5F, 0.5F};
  float reward[2] = {0.25F, 0.25F};
  float is_first[2] = {0, 0};
  std::vector<std::int64_t> action;
  std::vector<float> logits;
};

}  // namespace

TEST(an_input_too_large_is_named_and_leaves_every_byte) {
  for_each_kind([](const ModelPointer& model, lram_state_format) {
    Loop loop(model);
    const std::vector<std::uint8_t> before = bytes_of(loop.driver.state.get());
    loop.logits.assign(loop.logits.size(), 17);
    loop.action.assign(loop.action.size(), 17);
    const auto refused = [&](float& field, float value, const std::string& text) {
      const float kept = field;
      field = value;
      CHECK(loop.step() == LRAM_ERROR_OVERFLOW);
      CHECK(std::string(lram_last_error()).find(text) == 0);
      field = kept;
    };
    for (const float value : {1e38F, -std::numeric_limits<float>::max(), 1e25F}) {
      char shown[32];
      std::snprintf(shown, sizeof shown, "%g", static_cast<double>(value));
      refused(loop.return_to_go[1], value, "return_to_go: " + std::string(shown) + " in row 1 is too large");
      refused(loop.reward[0], value, "reward: " + std::string(shown) + " in row 0 is too large");
      if (loop.driver.about.observation == LRAM_VECTOR)
        refused(loop.observation.back(), value, "observation: " + std::string(shown) + " in row 1 is too large");
    }
    CHECK(bytes_of(loop.driver.state.get()) == before);
    CHECK(loop.logits == std::vector<float>(loop.logits.size(), 17));
    CHECK(loop.action == std::vector<std::int64_t>(loop.action.size(), 17));
    CHECK(loop.step() == LRAM_OK);
  });
}

TEST(the_reward_of_a_first_step_is_not_looked_at) {
  for_each_kind([](const ModelPointer& model, lram_state_format) {
    Loop usual(model);
    Loop huge(model);
    usual.is_first[1] = huge.is_first[1] = 1;
    huge.reward[1] = 3e38F;
    for (int step = 0; step < 3; ++step) {
      CHECK(usual.step() == LRAM_OK && huge.step() == LRAM_OK);
      CHECK(usual.logits == huge.logits);
      usual.is_first[1] = huge.is_first[1] = 0;
      huge.reward[1] = usual.reward[1];
    }
  });
}

TEST(a_state_too_large_is_refused) {
  for_each_kind([](const ModelPointer& model, lram_state_format) {
    Loop loop(model);
    std::vector<float> state = loop.driver.save();
    const std::vector<std::uint8_t> before = bytes_of(loop.driver.state.get());
    std::size_t end = 0;
    for (std::size_t i = 0; i < loop.driver.about.state_tensors; ++i) {
      lram_tensor tensor;
      CHECK_OK(lram_state_tensor(model.get(), i, &tensor));
      std::size_t size = 2;
      for (int axis = 0; axis < tensor.rank; ++axis) size *= tensor.extents[axis];
      end += size;
      const float kept = state[end - 1];
      for (const float value : {1.1e17F, -3e38F}) {
        state[end - 1] = value;
        const bool stabilizer = std::string(tensor.name).find(".m") != std::string::npos;
        const StatePointer copy = create_state(model, 2);
        const lram_status status = lram_state_load(copy.get(), state.data(), state.size());
        CHECK(status == (stabilizer ? LRAM_OK : LRAM_ERROR_STATE));
        if (!stabilizer) CHECK(told(std::string(tensor.name) + ": expected magnitudes up to 1e+17, got "));
      }
      state[end - 1] = kept;
    }
    CHECK(bytes_of(loop.driver.state.get()) == before);
  });
}

TEST(no_action_is_made_of_what_is_no_number) {  // where it matters it is found, where not it changes nothing
  for_each_kind([](const ModelPointer& model, lram_state_format format) {
    Loop expected(model);
    Loop spoilt(model);
    const std::vector<std::uint8_t> before = bytes_of(spoilt.driver.state.get());
    CHECK(expected.step() == LRAM_OK);
    std::size_t found = 0;
    std::size_t changed = 0;
    for (std::size_t at = 0; at < spoilt.memory_floats(); at += kStride) {
      CHECK_OK(lram_state_reset(spoilt.driver.state.get(), nullptr, 0));
      std::memcpy(spoilt.memory(), before.data(), before.size());
      spoilt.memory()[at] = kNan;
      spoilt.logits.assign(spoilt.logits.size(), 17);
      const lram_status status = spoilt.step();
      if (status == LRAM_OK) {
        changed += spoilt.logits == expected.logits ? 0 : 1;
        continue;
      }
      CHECK(status == LRAM_ERROR_OVERFLOW && told("logits: expected finite values"));
      CHECK(spoilt.logits == std::vector<float>(spoilt.logits.size(), 17));
      ++found;
    }
    const std::size_t codes = format == LRAM_STATE_LAZY_HALF ? floats_of_codes(model) : 0;
    CHECK(changed <= codes / kStride + (codes == 0 ? 0 : 4));  // two arrays in each of two blocks
    CHECK(found > (spoilt.memory_floats() - codes) / kStride / 10);
  });
}

// What lies in memory for the rewriting of a lazy state is looked at by the step after it, or by one of 16.
TEST(what_is_no_number_is_found_also_where_a_lazy_state_is_rewritten) {
  constexpr unsigned kPeriod = 17;
  Shape shape;
  shape.blocks = shape.heads = 1;
  shape.slstm_at = {};
  shape.inner = 32;
  const TemporaryFile file(make_artifact(shape));
  const ModelPointer model = open_model(file, "", 1, LRAM_STATE_LAZY_HALF);
  Loop expected(model);
  Loop spoilt(model);
  const std::vector<std::uint8_t> before = bytes_of(spoilt.driver.state.get());
  for (unsigned step = 0; step < kPeriod; ++step) CHECK(expected.step() == LRAM_OK);
  std::vector<std::size_t> changed;  // where it went unnoticed: in whole numbers, which lie side by side
  for (std::size_t at = 0; at < spoilt.memory_floats(); ++at) {
    CHECK_OK(lram_state_reset(spoilt.driver.state.get(), nullptr, 0));
    std::memcpy(spoilt.memory(), before.data(), before.size());
    spoilt.memory()[at] = kNan;
    lram_status status = LRAM_OK;
    for (unsigned step = 0; step < kPeriod && status == LRAM_OK; ++step) status = spoilt.step();
    if (status == LRAM_OK && spoilt.logits != expected.logits) changed.push_back(at);
  }
  CHECK(changed.empty() || changed.back() - changed.front() < floats_of_codes(model));
}

TEST(an_episode_that_starts_forgets_what_is_no_number) {
  for_each_kind([](const ModelPointer& model, lram_state_format) {
    Loop expected(model);
    Loop spoilt(model);
    std::memset(spoilt.memory(), 0xff, spoilt.memory_floats() * sizeof(float));
    for (int step = 0; step < 40; ++step) {
      for (Loop* loop : {&expected, &spoilt}) loop->is_first[0] = loop->is_first[1] = step == 0 ? 1.0F : 0.0F;
      CHECK(expected.step() == LRAM_OK && spoilt.step() == LRAM_OK);
      CHECK(spoilt.logits == expected.logits);
    }
    CHECK(spoilt.driver.save() == expected.driver.save());
  });
}

TEST(a_lost_row_is_refused_until_it_starts_anew) {
  for_each_kind([](const ModelPointer& model, lram_state_format) {
    const std::vector<float> whole = Loop(model).driver.save();
    const auto lost = [&](Loop& loop) {  // row 1
      auto& state = static_cast<lram::State&>(*loop.driver.state->episodes);
      const lram::StateField& y_or_n = model->engine->state_fields()[2];
      state.memory_of(0).parts[2][2 * y_or_n.size() - 1] = kNan;
      CHECK(loop.step() == LRAM_ERROR_OVERFLOW);
      CHECK(told("row 1"));
      for (int again = 0; again < 2; ++again) {
        const std::vector<std::uint8_t> before = bytes_of(loop.driver.state.get());
        CHECK(loop.step() == LRAM_ERROR_OVERFLOW);
        CHECK(told("state: row 1 was lost in an earlier step; reset it, load one, or start an episode"));
        CHECK(bytes_of(loop.driver.state.get()) == before);
      }
      std::vector<float> saved(whole.size(), 1.0F);
      CHECK(lram_state_save(loop.driver.state.get(), saved.data(), saved.size()) == LRAM_ERROR_OVERFLOW);
      CHECK(told("state: row 1 was lost in an earlier step; reset it, load one, or start an episode"));
      CHECK(saved == std::vector<float>(whole.size(), 1.0F));
    };
    {
      Loop loop(model);
      lost(loop);
      const int rows[] = {0, 1};
      CHECK_OK(lram_state_reset(loop.driver.state.get(), rows, 1));
      CHECK(loop.step() == LRAM_ERROR_OVERFLOW);
      lram_state* copied = nullptr;
      CHECK_OK(lram_state_clone(loop.driver.state.get(), &copied));
      loop.driver.state.reset(copied);
      CHECK(loop.step() == LRAM_ERROR_OVERFLOW);
      CHECK_OK(lram_state_reset(loop.driver.state.get(), rows + 1, 1));
      CHECK(loop.step() == LRAM_OK);
    }
    {
      Loop loop(model);
      lost(loop);
      CHECK_OK(lram_state_reset(loop.driver.state.get(), nullptr, 0));
      CHECK(loop.step() == LRAM_OK);
    }
    {
      Loop loop(model);
      lost(loop);
      CHECK_OK(lram_state_load(loop.driver.state.get(), whole.data(), whole.size()));
      CHECK(loop.step() == LRAM_OK);
    }
    Loop loop(model);
    lost(loop);
    loop.is_first[0] = 1;
    CHECK(loop.step() == LRAM_ERROR_OVERFLOW);
    loop.is_first[1] = 1;
    CHECK(loop.step() == LRAM_OK);
    loop.is_first[0] = loop.is_first[1] = 0;
    CHECK(loop.step() == LRAM_OK);
  });
}

int main() { return run_all(); }
