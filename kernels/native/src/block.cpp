#include "block.h"

#include <algorithm>
#include <cmath>

#include "kernels/tokens.h"

namespace lram {

std::size_t StatePart::size() const {
  std::size_t size = 1;
  for (const std::size_t extent : extents) size *= extent;
  return size;
}

void BlockSource::refuse(const std::string& problem) const {
  artifact.refuse("block " + std::to_string(number) + ": " + problem);
}

int BlockSource::integer(const char* name, int low, int high, int multiple) {
  const std::uint32_t value = artifact.block(number).integers[integers_read_++];
  if (value < static_cast<std::uint32_t>(low) || value > static_cast<std::uint32_t>(high) ||
      value % static_cast<std::uint32_t>(multiple) != 0)
    refuse(std::string(name) + ": expected " + std::to_string(low) + " to " + std::to_string(high) +
           (multiple > 1 ? " in steps of " + std::to_string(multiple) : "") + ", got " + std::to_string(value));
  return static_cast<int>(value);
}

float BlockSource::epsilon(const char* name) {
  const float value = artifact.block(number).floats[floats_read_++];
  if (!std::isfinite(value) || value < 0) refuse(std::string(name) + ": expected a small positive number");
  return value;
}

void BlockSource::expect_no_more() const {
  const BlockEntry& entry = artifact.block(number);
  bool zero = true;
  for (int i = integers_read_; i < BlockEntry::kIntegers; ++i) zero = zero && entry.integers[i] == 0;
  for (int i = floats_read_; i < BlockEntry::kFloats; ++i) zero = zero && entry.floats[i] == 0;
  if (!zero) refuse("expected zeros after its numbers");
}

void BlockSource::expect_unrolled_tokens(const char* what, bool skipped) const {
  bool fits = artifact.tokens() == kTokens;
  for (int token = 0; token < kTokens && fits; ++token)
    fits = artifact.token(token).skipped_at_start() == (skipped && token == 0);
  if (!fits)
    refuse(std::string(what) + " takes " + std::to_string(kTokens) + " tokens per step, of which " +
           (skipped ? "the first" : "none") + " is skipped at the start of an episode; this artifact feeds " +
           std::to_string(artifact.tokens()));
}

std::unique_ptr<Block> make_block(BlockSource source) {
  const std::uint32_t number = source.artifact.block(source.number).kind;
  for (const BlockKind& kind : block_kinds())
    if (kind.number == number) return kind.make(source);
  source.refuse("kind: unknown: " + std::to_string(number));
}

void Block::start(BlockMemory& memory, int batch) const {
  for (std::size_t part = 0; part < parts_.size(); ++part) {
    const StatePart& p = parts_[part];
    if (p.initial == 0 && p.initial_values == nullptr) continue;
    for (int row = 0; row < batch; ++row) restart_part(memory, part, row);
  }
}

void Block::restart(BlockMemory& memory, int row) const {
  for (std::size_t part = 0; part < parts_.size(); ++part) restart_part(memory, part, row);
}

void Block::restart_part(BlockMemory& memory, std::size_t part, int row) const {
  const StatePart& p = parts_[part];
  if (memory.parts[part] == nullptr) return restart_own(memory, part, row);
  float* values = memory.parts[part] + static_cast<std::size_t>(row) * p.size();
  if (p.initial_values != nullptr)
    std::copy_n(p.initial_values, p.size(), values);
  else
    std::fill_n(values, p.size(), p.initial);
}

void Block::save(const BlockMemory& memory, std::size_t part, const ChosenRows& rows, float* values) const {
  const std::size_t size = parts_[part].size();
  const float* from = memory.parts[part];
  for (int row = 0; row < rows.count; ++row, values += size)
    if (from != nullptr)
      std::copy_n(from + static_cast<std::size_t>(rows.place(row)) * size, size, values);
    else
      save_own(memory, part, rows.place(row), values);
}

void Block::load(BlockMemory& memory, std::size_t part, const ChosenRows& rows, const float* values) const {
  const std::size_t size = parts_[part].size();
  float* to = memory.parts[part];
  for (int row = 0; row < rows.count; ++row, values += size)
    if (to != nullptr)
      std::copy_n(values, size, to + static_cast<std::size_t>(rows.place(row)) * size);
    else
      load_own(memory, part, rows.place(row), values);
}

void Block::restart_own(BlockMemory& /*memory*/, std::size_t /*part*/, int /*row*/) const {}
void Block::save_own(const BlockMemory& /*memory*/, std::size_t /*part*/, int /*row*/, float* /*values*/) const {}
void Block::load_own(BlockMemory& /*memory*/, std::size_t /*part*/, int /*row*/, const float* /*values*/) const {}

}  // namespace lram
