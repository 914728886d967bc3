// The IMPALA CNN (arXiv 1802.01561): three times a convolution, a pooling that halves, and two residual units.
#pragma once
#include <cstddef>
#include <vector>

#include "arena.h"
#include "artifact.h"

namespace lram {

struct StepContext;

struct ImageWeights {
  int channels_in;
  int channels;
  const float* weight;
  const float* bias;
};

struct ImageBuffers {
  float* maps[4];   // bordered feature maps
  float* features;  // [batch][features]
};

class ImageEncoder {
 public:
  explicit ImageEncoder(const Artifact& artifact);

  int channels() const { return channels_; }
  int height() const { return height_; }
  int width() const { return width_; }
  int features() const { return features_; }
  const ImageWeights& convolution(int number) const { return weights_[static_cast<std::size_t>(number)]; }
  ImageBuffers plan(Planner& planner, int batch) const;

  // The features of every row's image.
  void run(StepContext& context, int thread) const;

 private:
  int channels_;
  int height_;
  int width_;
  int features_;
  std::vector<ImageWeights> weights_;
};

}  // namespace lram
