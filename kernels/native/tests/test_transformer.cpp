// Decision Transformers: products with many tokens, the two contexts, and what their blocks refuse.
#include <algorithm>

#include "artifact.h"
#include "testing.h"

using namespace lram_testing;
using lram::Layout;

namespace {

const std::vector<Layout> kLayouts = {Layout::tiled_float32, Layout::tiled_int8, Layout::tiled_int8g,
                                      Layout::tiled_int4};

template <class Check>
void for_each_kind(Check check) {
  for (const bool cached : {true, false})
    for (const Layout layout : kLayouts) {
      const TemporaryFile file(make_artifact(transformer(cached, layout)));
      for (const std::string& isa : supported_isas()) check(file, isa, cached);
    }
}

std::string refusal(const Shape& shape) {
  const TemporaryFile file(make_artifact(shape));
  lram_model* model = nullptr;
  CHECK(lram_open(file.path().c_str(), nullptr, &model) == LRAM_ERROR_ARTIFACT && model == nullptr);
  return lram_last_error();
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(products_with_many_tokens_are_those_with_a_few) {
  constexpr int kCols = 336;  // more than are multiplied at once
  constexpr int kRows = 70;
  constexpr int kMany = 17;
  int count = 0;
  const lram::Candidate* candidates = lram::candidates(&count);
  for (const Layout layout : kLayouts) {
    Shape shape = transformer(true, layout);
    shape.hidden = kCols;
    shape.ffn = kRows;
    const TemporaryFile file(make_artifact(shape));
    const lram::Artifact artifact(lram::MappedFile(file.path()), true, false);
    const lram::Matrix matrix = artifact.matrices(42, 0, 1, kRows, kCols)[0];
    std::vector<float> x(kMany * kCols);
    std::vector<float> bias(static_cast<std::size_t>(matrix.tiles) * 32);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
    for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i % 7) / 4;
    for (int i = 0; i < count; ++i) {
      if (!candidates[i].supported()) continue;
      const lram::Kernels& kernels = *candidates[i].kernels;
      const int groups = (kMany + kernels.gemm_tokens - 1) / kernels.gemm_tokens;
      const int rows = groups * kernels.gemm_tokens;
      std::vector<std::int8_t> codes(kMany * 2 * (kCols + 64));
      std::vector<float> scales(kMany);
      std::vector<std::int32_t> sums(kMany * 2 * (kCols / 64 + 1));
      const lram::Tokens tokens = {kMany, x.data(), kCols, 2, codes.data(), kCols + 64, scales.data(), sums.data()};
      std::vector<float> few(kMany * bias.size());
      kernels.quantize(tokens, matrix.format, kCols);
      kernels.dense(matrix, 0, matrix.tiles, tokens, few.data(), bias.size());
      std::vector<float> packed(static_cast<std::size_t>(rows) * kCols);
      for (int group = 0; group < groups; ++group) {
        const int first = group * kernels.gemm_tokens;
        kernels.pack_group(x.data() + first * kCols, kCols, std::min(kernels.gemm_tokens, kMany - first), kCols,
                           packed.data() + first * kCols);
      }
      std::vector<float> many(static_cast<std::size_t>(rows) * bias.size(), 1.0F);
      std::vector<float> scratch(lram::kGemmScratch);
      lram::Gemm gemm = {&matrix, 0,           matrix.tiles, packed.data(), 0, groups, bias.data(),
                         true,    many.data(), bias.size(),  scratch.data()};
      kernels.gemm(gemm);
      gemm.add = false;
      gemm.first_tile = 1;  // anew, and no others
      gemm.last_tile = 2;
      kernels.gemm(gemm);
      for (std::size_t token = 0; token < kMany; ++token)
        for (std::size_t output = 0; output < bias.size(); ++output)
          few[token * bias.size() + output] += bias[output] + (output / 32 == 1 ? 0.0F : 1.0F);
      many.resize(few.size());
      CHECK(relative_error(few, many) < (layout == Layout::tiled_float32 ? 1e-6 : 3e-4));
    }
  }
}

TEST(gelu_is_the_exact_one) {
  int count = 0;
  const lram::Candidate* candidates = lram::candidates(&count);
  std::vector<float> x(1024);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = (static_cast<float>(i) - 512) / 64;
  for (int i = 0; i < count; ++i) {
    if (!candidates[i].supported()) continue;
    std::vector<float> y(x.size());
    candidates[i].kernels->gelu(x.data(), static_cast<int>(x.size()), y.data());
    for (std::size_t k = 0; k < x.size(); ++k) {
      const auto value = static_cast<double>(x[k]);
      CHECK(std::fabs(y[k] - 0.5 * value * (1 + std::erf(value / std::sqrt(2.0)))) < 1e-6);
    }
  }
}

TEST(steps_beyond_the_context_are_forgotten) {
  for_each_kind([](const TemporaryFile& file, const std::string& isa, bool cached) {
    const ModelPointer model = open_model(file, isa.c_str());
    Driver one(model, 1);
    Driver two(model, 1);
    for (unsigned step = 0; step < 7; ++step) two.step(step + 100);
    std::vector<float> logits[2];
    // a cache holds what was computed from what is forgotten
    for (unsigned step = 0; step < (cached ? 40U : 5U); ++step) {
      logits[0] = one.step(step);
      logits[1] = two.step(step);
    }
    CHECK(cached || logits[0] == logits[1]);
    CHECK(cached || one.save() == two.save());
  });
}

TEST(a_cache_has_no_reward_and_an_index_within_its_ring) {
  const TemporaryFile file(make_artifact(transformer(true, Layout::tiled_float32)));
  const ModelPointer model = open_model(file, "");
  const Driver driver(model, 1);
  CHECK(driver.about.reads_return_to_go != 0 && driver.about.reads_reward == 0);
  lram_tensor index;
  CHECK_OK(lram_state_tensor(model.get(), 2, &index));
  CHECK(std::string(index.name) == "state.0.index" && index.rank == 0);
  std::vector<float> state = driver.save();
  float& value = state[state.size() / 2 - 1];  // of the first block
  for (const float allowed : {3.0F, 0.0F}) {
    value = allowed;
    CHECK_OK(lram_state_load(driver.state.get(), state.data(), state.size()));
  }
  const std::pair<float, const char*> refused[] = {{4, "whole numbers below 4, got 4"},
                                                   {-1, "whole numbers below 4, got -1"},
                                                   {0.5F, "whole numbers below 4, got 0.5"},
                                                   {INFINITY, "finite values, got inf"}};
  for (const auto& [wrong, text] : refused) {
    value = wrong;
    CHECK(lram_state_load(driver.state.get(), state.data(), state.size()) == LRAM_ERROR_STATE);
    CHECK(has(lram_last_error(), (std::string("state.0.index: expected ") + text).c_str()));
  }
}

TEST(transformers_refuse_what_their_blocks_do_not_compute) {
  Shape cached = transformer(true, Layout::tiled_float32);
  Shape window = transformer(false, Layout::tiled_float32);
  std::swap(cached.tokens, window.tokens);
  cached.read_token = window.read_token = 1;
  CHECK(has(refusal(cached), "with a cache takes 3 tokens per step, of which none is skipped"));
  CHECK(has(refusal(window), "over its window takes 3 tokens per step, of which the first is skipped"));
  window.tokens = cached.tokens;
  CHECK(has(refusal(window), "block 0: read_token: expected the last of a step, 2, got 1"));
  window = transformer(false, Layout::tiled_float32);
  window.heads = 7;
  CHECK(has(refusal(window), "block 0: heads: expected to divide 60, got 7"));
  window.heads = 3;
  window.steps = 1025;
  CHECK(has(refusal(window), "block 0: steps: expected 2 to 1024, got 1025"));
}

int main() { return run_all(); }
