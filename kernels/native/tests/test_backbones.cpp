// What every backbone beside the xLSTM, whose own tests go further (test_engine), keeps of the engine's promises: its
// state, its threads.
#include <algorithm>
#include <cstring>

#include "testing.h"

using namespace lram_testing;
using lram::Layout;

namespace {

template <class Check>
void for_each(Check check) {
  for (const Layout layout : {Layout::tiled_float32, Layout::tiled_int8, Layout::tiled_int8g, Layout::tiled_int4})
    for (const Shape& shape : {mamba(layout), transformer(true, layout), transformer(false, layout)}) {
      const TemporaryFile file(make_artifact(shape));
      for (const std::string& isa : supported_isas()) check(file, isa);
    }
}

}  // namespace

TEST(a_row_that_starts_an_episode_forgets_every_value) {
  for_each([](const TemporaryFile& file, const std::string& isa) {
    const ModelPointer model = open_model(file, isa.c_str(), 2);
    Driver fresh(model, 2);
    Driver spoilt(model, 2);
    const lram::Episodes& inner = *spoilt.state->episodes;
    std::memset(inner.memory(), 0xff, inner.memory_floats() * sizeof(float));
    for (unsigned step = 0; step < 12; ++step) {
      const std::vector<int> first = step == 0   ? std::vector<int>{0, 1}
                                     : step == 6 ? std::vector<int>{1}
                                                 : std::vector<int>{};
      CHECK(fresh.step(step, first) == spoilt.step(step, first));
    }
    CHECK(fresh.save() == spoilt.save());
  });
}

TEST(a_saved_state_continues_the_run) {
  for_each([](const TemporaryFile& file, const std::string& isa) {
    const ModelPointer model = open_model(file, isa.c_str());
    Driver one(model, 2);
    Driver two(model, 2);
    const std::vector<float> start = one.save();
    for (unsigned step = 0; step < 7; ++step) one.step(step, step == 2 ? std::vector<int>{1} : std::vector<int>{});
    const std::vector<float> saved = one.save();
    CHECK(saved != start);
    CHECK_OK(lram_state_load(two.state.get(), saved.data(), saved.size()));
    CHECK(two.save() == saved);
    for (unsigned step = 7; step < 12; ++step) CHECK(one.step(step) == two.step(step));
    CHECK_OK(lram_state_reset(one.state.get(), nullptr, 0));
    CHECK(one.save() == start);
  });
}

TEST(results_do_not_depend_on_the_number_of_threads) {
  struct Case {
    Shape shape;
    int most_threads;  // tiles of what there is least of, or heads
  };
  for (const Layout layout : {Layout::tiled_float32, Layout::tiled_int8, Layout::tiled_int8g, Layout::tiled_int4}) {
    std::vector<Case> cases = {{mamba(layout), 6}, {transformer(true, layout), 3}, {transformer(false, layout), 3}};
    for (const bool cached : {true, false}) {
      if (layout != Layout::tiled_int8) continue;
      cases.push_back({transformer(cached, layout), 2});
      cases.back().shape.heads = 1;
    }
    for (const Case& tried : cases) {
      const TemporaryFile file(make_artifact(tried.shape));
      for (const std::string& isa : supported_isas()) {
        const ModelPointer single = open_model(file, isa.c_str());
        Driver expected(single, 3);
        for (const int threads : {2, 9}) {
          const ModelPointer model = open_model(file, isa.c_str(), threads);
          Driver actual(model, 3);
          CHECK(actual.about.threads == std::min(threads, tried.most_threads));
          CHECK_OK(lram_state_reset(expected.state.get(), nullptr, 0));
          for (unsigned step = 0; step < 6; ++step) CHECK(actual.step(step) == expected.step(step));
          CHECK(actual.save() == expected.save());
        }
      }
    }
  }
}

TEST(a_state_that_is_no_number_makes_no_action) {
  for_each([](const TemporaryFile& file, const std::string& isa) {
    const ModelPointer model = open_model(file, isa.c_str());
    const Driver driver(model, 1);
    driver.state->episodes->memory()[40] = std::nanf("");
    const std::vector<float> observation(driver.about.observation_size, 0.5F);
    float action[3] = {17, 17, 17};
    const float zero = 0;
    const lram_inputs inputs = {observation.data(), &zero, &zero, &zero};
    const lram_outputs outputs = {action, nullptr};
    CHECK(lram_step(driver.state.get(), &inputs, &outputs) == LRAM_ERROR_OVERFLOW && action[0] == 17);
    CHECK_OK(lram_state_reset(driver.state.get(), nullptr, 0));
    CHECK_OK(lram_step(driver.state.get(), &inputs, &outputs));
  });
}

int main() { return run_all(); }
