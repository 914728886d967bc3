// Feature maps have channels last and a border of zeros; every convolution is divided among the threads by rows.
#include "image.h"

#include <algorithm>

#include "step.h"

namespace lram {
namespace {

constexpr int kBlocks = 3;
constexpr int kConvolutionsPerBlock = 5;  // one, then two residual units of two
constexpr int kChannels[kBlocks] = {16, 32, 32};

struct Map {
  int height;
  int width;
  int channels;
  float* data;  // [height + 2][width + 2][channels]

  float* pixel(int row, int column) const {
    return data + static_cast<std::size_t>((row + 1) * (width + 2) + column + 1) * static_cast<std::size_t>(channels);
  }
};

// Zeros around the rows of a share; the first and the last share also get the rows above and below.
void clear_border(const Map& map, Range rows) {
  if (rows.begin == rows.end) return;  // more threads than rows: somebody else has the first and the last one
  const int channels = map.channels;
  for (int row = rows.begin; row < rows.end; ++row) {
    std::fill_n(map.pixel(row, -1), channels, 0.0F);
    std::fill_n(map.pixel(row, map.width), channels, 0.0F);
  }
  const int whole = (map.width + 2) * channels;
  if (rows.begin == 0) std::fill_n(map.pixel(-1, -1), whole, 0.0F);
  if (rows.end == map.height) std::fill_n(map.pixel(map.height, -1), whole, 0.0F);
}

void read_image(const std::uint8_t* image, const Map& map, Range rows) {
  clear_border(map, rows);
  const std::size_t area = static_cast<std::size_t>(map.height) * static_cast<std::size_t>(map.width);
  for (int row = rows.begin; row < rows.end; ++row)
    for (int column = 0; column < map.width; ++column)
      for (int channel = 0; channel < map.channels; ++channel)
        map.pixel(row, column)[channel] =
            static_cast<float>(
                image[static_cast<std::size_t>(channel) * area + static_cast<std::size_t>(row * map.width + column)]) /
            255.0F;
}

// 3x3 maximum with stride 2 and padding 1.
void pool(const Map& from, const Map& to, Range rows) {
  clear_border(to, rows);
  for (int row = rows.begin; row < rows.end; ++row)
    for (int column = 0; column < to.width; ++column) {
      float* y = to.pixel(row, column);
      std::copy_n(from.pixel(2 * row, 2 * column), to.channels, y);
      for (int r = std::max(2 * row - 1, 0); r <= std::min(2 * row + 1, from.height - 1); ++r)
        for (int c = std::max(2 * column - 1, 0); c <= std::min(2 * column + 1, from.width - 1); ++c) {
          const float* x = from.pixel(r, c);
          for (int i = 0; i < to.channels; ++i) y[i] = std::max(y[i], x[i]);
        }
    }
}

void rectify(const Kernels& kernels, const Map& from, const Map& to, Range rows) {
  clear_border(to, rows);
  for (int row = rows.begin; row < rows.end; ++row)
    kernels.rectify(from.pixel(row, 0), from.width * from.channels, to.pixel(row, 0));
}

// Runs the convolutions of one image, one after the other.
class OneImage {
 public:
  OneImage(const ImageEncoder& encoder, StepContext& context, int thread)
      : encoder_(encoder), context_(context), thread_(thread), buffers_(context.state.encoders.image) {}

  void run(int row) {
    const auto* images = static_cast<const std::uint8_t*>(context_.inputs.observation);
    Map x = {encoder_.height(), encoder_.width(), encoder_.channels(), buffers_.maps[0]};
    read_image(images + static_cast<std::size_t>(row) * context_.model.encoders().observation_size(), x, rows(x));
    context_.barrier(thread_);
    int number = 0;
    for (const int channels : kChannels) {
      const Map full = {x.height, x.width, channels, buffers_.maps[1]};
      convolve(number++, x, full, false, nullptr);
      x = {(x.height + 1) / 2, (x.width + 1) / 2, channels, buffers_.maps[0]};
      pool(full, x, rows(x));
      context_.barrier(thread_);
      for (int unit = 0; unit < 2; ++unit) {
        const Map rectified = {x.height, x.width, channels, buffers_.maps[2]};
        const Map between = {x.height, x.width, channels, buffers_.maps[3]};
        rectify(context_.kernels, x, rectified, rows(x));
        context_.barrier(thread_);
        convolve(number++, rectified, between, true, nullptr);
        convolve(number++, between, x, false, x.data);
      }
    }
    float* features = buffers_.features + row * encoder_.features();
    const Range own = rows(x);
    for (int r = own.begin; r < own.end; ++r)
      context_.kernels.rectify(x.pixel(r, 0), x.width * x.channels, features + r * x.width * x.channels);
    context_.barrier(thread_);
  }

 private:
  Range rows(const Map& map) const { return share(map.height, thread_, context_.threads()); }

  void convolve(int number, const Map& from, const Map& to, bool relu, const float* residual) {
    const ImageWeights& w = encoder_.convolution(number);
    const Range own = rows(to);
    clear_border(to, own);
    context_.kernels.image_convolution(
        {to.width, w.channels_in, w.channels, relu, w.weight, w.bias, from.data, residual, to.data}, own.begin,
        own.end);
    context_.barrier(thread_);
  }

  const ImageEncoder& encoder_;
  StepContext& context_;
  int thread_;
  const ImageBuffers& buffers_;
};

}  // namespace

ImageEncoder::ImageEncoder(const Artifact& artifact)
    : channels_(static_cast<int>(artifact.header().image_channels)),
      height_(static_cast<int>(artifact.header().image_height)),
      width_(static_cast<int>(artifact.header().image_width)) {
  int height = height_;
  int width = width_;
  for (int block = 0; block < kBlocks; ++block) {
    height = (height + 1) / 2;
    width = (width + 1) / 2;
  }
  features_ = kChannels[kBlocks - 1] * height * width;
  int channels_in = channels_;
  for (int i = 0; i < kBlocks * kConvolutionsPerBlock; ++i) {
    const int channels = kChannels[i / kConvolutionsPerBlock];
    const std::uint64_t count = std::uint64_t{9} * static_cast<std::uint64_t>(channels_in * channels);
    weights_.push_back({channels_in, channels, artifact.plain(kImageWeight, i, count),
                        artifact.plain(kImageBias, i, static_cast<std::uint64_t>(channels))});
    channels_in = channels;
  }
}

ImageBuffers ImageEncoder::plan(Planner& planner, int batch) const {
  const auto area = static_cast<std::size_t>(height_ + 2) * static_cast<std::size_t>(width_ + 2);
  const auto channels = static_cast<std::size_t>(std::max(channels_, kChannels[kBlocks - 1]));
  ImageBuffers buffers = {};
  for (float*& map : buffers.maps) map = planner.take<float>(area * channels);
  buffers.features = planner.take<float>(static_cast<std::size_t>(batch) * static_cast<std::size_t>(features_));
  return buffers;
}

void ImageEncoder::run(StepContext& context, int thread) const {
  for (int row = 0; row < context.rows.count; ++row) OneImage(*this, context, thread).run(row);
}

}  // namespace lram
