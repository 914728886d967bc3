// From a step's inputs to the tokens that the blocks read: an embedding per token, then a norm.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "arena.h"
#include "artifact.h"
#include "image.h"
#include "lram.h"

namespace lram {

struct StepContext;

struct TokenWeights {
  Input input;
  bool skipped_at_start;
  bool zero;
  const float* weight;  // [hidden] of a number; NULL: of the observation, whose matrix is below
  const float* bias;
};

// Buffers of a step's encoders.
struct EncoderBuffers {
  float* observed;    // [batch][padded hidden]
  float* normalized;  // [threads][batch][observation], where observations are normalized
  ImageBuffers image;
};

class Encoders {
 public:
  explicit Encoders(const Artifact& artifact);

  bool images() const { return image_ != nullptr; }
  std::size_t observation_size() const { return observation_size_; }
  bool reads(Input input) const;
  // Most values that are quantized at once.
  int longest() const { return observation_.format == Format::float32 ? 0 : observation_.cols; }
  EncoderBuffers plan(Planner& planner, int batch, int threads) const;

  // The tokens of every row into this thread's residual stream; whether all are within what float32 computes with,
  // which is the same in every thread. If not, they are not normalized, and `refuse` says which input is to blame.
  bool run(StepContext& context, int thread) const;
  [[noreturn]] void refuse(const StepContext& context) const;

 private:
  // What the encoder reads of a vector: the observation, or what this thread has normalized of it.
  const float* normalized(StepContext& context, int thread) const;
  void encode_observation(StepContext& context, int thread) const;
  void embed(StepContext& context, int thread) const;

  int hidden_;
  int room_;
  std::vector<TokenWeights> tokens_;
  std::size_t observation_size_;
  Matrix observation_;
  std::unique_ptr<const ImageEncoder> image_;  // NULL where observations are vectors
  const float* mean_;                          // of an observation, element by element; NULL: it is not normalized
  const float* deviation_;                     // and not NULL then
  float clip_;
  const float* norm_weight_;
  const float* norm_bias_;
  float epsilon_;
};

}  // namespace lram
