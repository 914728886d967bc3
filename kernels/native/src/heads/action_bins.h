// The head: logits of every token that an action can be, of which the largest is chosen.
#pragma once
#include "artifact.h"
#include "norm.h"

namespace lram {

struct StepContext;

class ActionBins {
 public:
  explicit ActionBins(const Artifact& artifact);

  bool discrete() const { return discrete_; }
  int actions() const { return actions_; }  // entries of an action
  int logits() const { return actions_ * tokens_; }
  bool clamps() const { return unclamped_ != nullptr; }  // whether limits have clamped some of what actions can be

  // Logits of every row from the residual stream, before their bias, divided among the threads by tiles.
  void run(StepContext& context, int thread) const;
  void add_bias(StepContext& context) const;
  // Writes actions and logits, each where it is asked for, and what is looked after into the state.
  void choose(const StepContext& context) const;

 private:
  bool discrete_;
  int actions_;
  int tokens_;              // logits per action
  int first_bin_;           // tokens before it are discrete actions
  float bin_width_;         // bins divide [-1, 1]
  const float* values_;     // [actions][tokens]: what is given in their place; NULL: the bins themselves
  const float* unclamped_;  // the same before limits clamped them; NULL: none do
  int read_;                // the token of a step behind which the action is read
  Norm norm_;
  Matrix matrix_;
  const float* bias_;
};

}  // namespace lram
