// Which floats of a step's own are written, and through which buffer, as one goes through a program.
//
// Buffers may use the same memory, one after the other. But the rows of one that begins elsewhere, or has another
// stride, lie elsewhere: what is written through it destroys what was written through the other, in whichever rows.
#pragma once
#include <cstdint>
#include <iterator>
#include <map>

#include "program/format.h"

namespace lram {

// Whether two buffers of the arena have memory in common but not their rows.
inline bool in_the_way(const BufferEntry& a, const BufferEntry& b) {
  const bool same = a.number == b.number && a.stride == b.stride;
  return !same && a.number < b.number + b.stride && b.number < a.number + a.stride;
}

class Written {
 public:
  // `count` floats of each row of a buffer of the arena, from an offset on.
  void add(const BufferEntry& buffer, std::uint64_t offset, std::uint64_t count) {
    if (count == 0) return;
    clear(buffer);
    Region& region = regions_[buffer.number];
    region.stride = buffer.stride;
    std::uint64_t end = offset + count;
    auto span = region.spans.upper_bound(offset);
    if (span != region.spans.begin() && std::prev(span)->second >= offset) --span;
    while (span != region.spans.end() && span->first <= end) {  // they become one
      offset = span->first < offset ? span->first : offset;
      end = span->second > end ? span->second : end;
      span = region.spans.erase(span);
    }
    region.spans[offset] = end;
  }

  bool holds(const BufferEntry& buffer, std::uint64_t offset, std::uint64_t count) const {
    if (count == 0) return true;
    const auto region = regions_.find(buffer.number);
    if (region == regions_.end() || region->second.stride != buffer.stride) return false;
    const auto span = region->second.spans.upper_bound(offset);
    return span != region->second.spans.begin() && std::prev(span)->second >= offset + count;
  }

 private:
  struct Region {
    std::uint64_t stride = 0;
    std::map<std::uint64_t, std::uint64_t> spans;  // from start to end; none touches another
  };

  // Forgets what buffers that are in the way of one held.
  void clear(const BufferEntry& buffer) {
    auto region = regions_.upper_bound(buffer.number);
    if (region != regions_.begin() && std::prev(region)->first + std::prev(region)->second.stride > buffer.number)
      --region;
    while (region != regions_.end() && region->first < std::uint64_t{buffer.number} + buffer.stride) {
      const bool same = region->first == buffer.number && region->second.stride == buffer.stride;
      region = same ? std::next(region) : regions_.erase(region);
    }
  }

  std::map<std::uint64_t, Region> regions_;  // by where they begin; none overlaps another
};

}  // namespace lram
