// Which kernels run: the best that the processor has, or the ones that LRAM_ISA names.
//   LRAM_EXPECT_ISA=neon test_dispatch     also checks what the best is here
#include <algorithm>

#include "testing.h"

using namespace lram_testing;

namespace {

std::string chosen(const TemporaryFile& file) {
  lram_model* opened = nullptr;
  CHECK_OK(lram_open(file.path().c_str(), nullptr, &opened));
  const ModelPointer model(opened, lram_close);
  lram_description about;
  CHECK_OK(lram_describe(model.get(), &about));
  return about.isa;
}

std::vector<std::string> compiled_isas() {
  int count = 0;
  const lram::Candidate* candidates = lram::candidates(&count);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(candidates[i].kernels->name);
  return names;
}

}  // namespace

TEST(the_best_supported_kernels_are_chosen) {
  const TemporaryFile file(make_artifact({}));
  unsetenv("LRAM_ISA");
  const std::string best = chosen(file);
  CHECK(best == supported_isas().front());
  setenv("LRAM_ISA", "", 1);
  CHECK(chosen(file) == best);
  const char* expected = std::getenv("LRAM_EXPECT_ISA");
  if (expected != nullptr) CHECK(best == expected);
  std::printf("  chosen: %s\n", best.c_str());
}

TEST(supported_kernels_can_be_forced_and_others_are_refused_by_name) {
  const TemporaryFile file(make_artifact({}));
  const std::vector<std::string> supported = supported_isas();
  CHECK(supported.back() == "plain");  // every processor runs those
  for (const std::string& isa : compiled_isas()) {
    setenv("LRAM_ISA", isa.c_str(), 1);
    if (std::find(supported.begin(), supported.end(), isa) != supported.end()) {
      CHECK(chosen(file) == isa);
      continue;
    }
    lram_model* model = nullptr;
    CHECK(lram_open(file.path().c_str(), nullptr, &model) == LRAM_ERROR_ARGUMENT && model == nullptr);
    CHECK(std::string(lram_last_error()) == "LRAM_ISA: this processor does not support " + isa);
    std::printf("  refused: %s\n", isa.c_str());
  }
}

int main() { return run_all(); }
