// Which readings of a robot a policy may act on. What fails is bridged by whoever reads, for as long as it may be.
#ifndef LRAM_LOOP_READINGS_H
#define LRAM_LOOP_READINGS_H

#include <lram/loop/fault.h>
#include <lram/loop/policy.h>
#include <lram/loop/values.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lram::loop {

// Checks readings, and keeps the last good one. Allocates in its constructor only.
class Readings {
 public:
  // `frozen`: how many readings in a row may be the same; 0: any number. `policy` may be swapped meanwhile.
  Readings(const Policy& policy, std::uint64_t frozen);
  ~Readings() = default;
  Readings(const Readings&) = delete;
  Readings& operator=(const Readings&) = delete;

  // An episode starts: what was read before stands for nothing in it.
  void start() noexcept;
  // What is wrong with a reading. Where nothing is it is copied, and the last good one until it is taken back.
  Trouble check(const Reading& reading) noexcept;
  // The one that check() found good last is none: the one before it stands again, also where frozen ones are looked
  // for.
  void take_back() noexcept;
  // The last good reading, as Policy::act takes it; nullptr where there was none.
  const void* const* last() const noexcept { return has_last_ ? last_->pointers.data() : nullptr; }

 private:
  struct Copy {
    std::vector<std::vector<std::uint64_t>> memory;  // for elements of any type
    std::vector<const void*> pointers;
  };

  Trouble wrong(const Observation& of, const Values& values) const noexcept;
  bool is_frozen(const Reading& reading) noexcept;
  static void fill(Copy& copy, const Reading& reading) noexcept;

  const Policy& policy_;
  std::uint64_t frozen_;
  std::uint64_t same_ = 0;
  std::uint64_t same_before_ = 0;  // when the reading before was looked at
  Copy copies_[4];
  Copy* last_ = &copies_[0];
  Copy* before_last_ = &copies_[1];
  Copy* before_ = &copies_[2];  // the one read before that was within limits, where frozen ones are looked for
  Copy* before_that_ = &copies_[3];
  bool has_last_ = false;
  bool had_last_ = false;  // before_last_ is one
  bool has_before_ = false;
  bool had_before_ = false;  // before_that_ is one
};

}  // namespace lram::loop

#endif
