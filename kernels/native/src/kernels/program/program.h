// What the kernels of traced programs are called with; see kernels.h for what holds for all. Unlike elsewhere, sizes
// are what they are: nothing is read or written beyond them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lram {

// Functions of one, two or three numbers, as a program numbers them. Truth is 1 or 0, and all but 0 is true.
enum class Function : std::uint32_t {
  add,
  subtract,
  multiply,
  divide,
  minimum,
  maximum,
  power,
  remainder,  // of the sign of the divisor, as Python's
  equal,
  not_equal,
  less,
  less_equal,
  greater,
  greater_equal,
  both,
  either,
  arctangent_of_two,  // of a / b, in the quadrant of both
  negative,
  absolute,
  sign,
  floor,
  ceiling,
  round,  // to even
  truncate,
  square_root,
  reciprocal_square_root,
  reciprocal,
  exponential,
  exponential_less_one,
  logarithm,
  logarithm_of_one_more,
  sine,
  cosine,
  arctangent,
  error_function,
  hyperbolic_tangent,
  sigmoid,
  rectify,
  silu,
  gelu,
  opposite,      // of truth
  choose,        // a ? b : c
  clamp,         // a within b and c
  multiply_add,  // a * b + c
};
constexpr std::uint32_t kFunctions = 44;
// How many numbers a function is of.
constexpr int arguments_of(Function function) {
  return function < Function::negative ? 2 : function < Function::choose ? 1 : 3;
}

// y[i] = function(a[i * a_step], b[i * b_step], c[i * c_step]); steps are 0 or 1. y may be one of the others.
struct Pointwise {
  Function function;
  int count;
  const float* a;
  const float* b;
  const float* c;
  int a_step;
  int b_step;
  int c_step;
  float* y;
};

enum class Reduction : std::uint32_t { sum, product, largest, smallest, place_of_largest, place_of_smallest };
constexpr std::uint32_t kReductions = 6;

// Of the last axis of x [count][length]; of places the first one.
struct Reduce {
  Reduction reduction;
  int count;
  int length;
  const float* x;
  float* y;  // [count]
};

// y [rows][cols] = a [rows][inner] times b [inner][cols].
struct Product {
  int rows;
  int inner;
  int cols;
  const float* a;
  const float* b;
  float* y;
};

// The kernels of traced programs of one instruction set.
struct ProgramKernels {
  void (*pointwise)(const Pointwise&);
  void (*reduce)(const Reduce&);
  void (*product)(const Product&);
};

}  // namespace lram
