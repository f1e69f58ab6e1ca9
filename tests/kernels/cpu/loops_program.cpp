// Calls every loop of loops.h on fixed inputs and writes the results to standard output, for test_loops.py to compare.
//
// A record is a name of 48 bytes, the number of values, their scale and that many doubles. The program needs nothing of
// torch, so it also runs under an emulator of another processor.
#include "loops.h"

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

using namespace gammabeta;

namespace {

uint32_t state = 1;

// In (−2, 2), the same on every machine.
double next_value() {
  state = state * 1664525u + 1013904223u;
  return (double(state >> 8) / double(1 << 24) - 0.5) * 4;
}

void record(const std::string& name, const double* values, int64_t n, double scale) {
  char head[48] = {};
  std::strncpy(head, name.c_str(), sizeof head - 1);
  std::fwrite(head, 1, sizeof head, stdout);
  std::fwrite(&n, sizeof n, 1, stdout);
  std::fwrite(&scale, sizeof scale, 1, stdout);
  std::fwrite(values, sizeof(double), size_t(n), stdout);
}

float wide(bfloat16 x) {
  float y;
  storage().load_bfloat16(&x.bits, &y, 1);
  return y;
}
float wide(float16 x) {
  float y;
  storage().load_float16(&x.bits, &y, 1);
  return y;
}
float wide(float x) { return x; }
double wide(double x) { return x; }
void narrow(double x, double* y) { *y = x; }
void narrow(double x, float* y) { *y = float(x); }
void narrow(double x, bfloat16* y) {
  const float f = float(x);
  storage().store_bfloat16(&f, &y->bits, 1);
}
void narrow(double x, float16* y) {
  const float f = float(x);
  storage().store_float16(&f, &y->bits, 1);
}

template <class T>
void record(const std::string& name, const std::vector<T>& values, double scale = 16) {
  std::vector<double> all;
  for (T value : values) all.push_back(double(wide(value)));
  record(name, all.data(), int64_t(all.size()), scale);
}

template <class T>
std::vector<T> inputs(int64_t n) {
  std::vector<T> values(static_cast<size_t>(n));
  for (T& value : values) narrow(next_value(), &value);
  return values;
}

template <class A>
Finish<A> finish_of(int activation) {
  return {Activation(activation), A(0.2)};
}

template <class A>
void run_loops(const std::string& type, int64_t n) {
  const Loops<A>& loops = gammabeta::loops<A>();
  const std::string of = type + " " + std::to_string(n);
  const auto x = inputs<A>(n), g = inputs<A>(n), residual = inputs<A>(n), weight = inputs<A>(n), bias = inputs<A>(n),
             mean = inputs<A>(n), c = inputs<A>(n);
  const A m = A(0.3), scale = A(1.7), shift = A(-0.4);
  std::vector<A> y(size_t(n), A(0)), first(y), second(y);
  A s = 0, q = 0;
  record("sum " + of, std::vector<A>{loops.sum(x.data(), n)}, 16. * double(n));
  loops.deviations(x.data(), n, m, &s, &q);
  record("deviations " + of, std::vector<A>{s, q}, 16. * double(n));
  loops.gradient_sums_plane(g.data(), x.data(), n, m, &s, &q);
  record("gradient_sums_plane " + of, std::vector<A>{s, q}, 16. * double(n));
  loops.gradient_sums_line(g.data(), x.data(), weight.data(), n, m, &s, &q);
  record("gradient_sums_line " + of, std::vector<A>{s, q}, 16. * double(n));
  for (int activation = kNone; activation <= kGelu; ++activation)
    for (const A* r : {static_cast<const A*>(nullptr), residual.data()}) {
      const Finish<A> finish = finish_of<A>(activation);
      const std::string with = of + (r ? " + residual " : " ") + std::to_string(activation);
      loops.apply_plane(x.data(), r, y.data(), n, m, scale, shift, finish);
      record("apply_plane " + with, y);
      loops.apply_columns(x.data(), r, y.data(), n, mean.data(), weight.data(), bias.data(), finish);
      record("apply_columns " + with, y);
      loops.apply_line(x.data(), r, y.data(), n, m, scale, weight.data(), bias.data(), finish);
      record("apply_line " + with, y);
      loops.finish_gradient_plane(g.data(), x.data(), r, y.data(), n, m, scale, shift, finish);
      record("finish_gradient_plane " + with, y);
      loops.finish_gradient_columns(g.data(), x.data(), r, y.data(), n, mean.data(), weight.data(), bias.data(),
                                    finish);
      record("finish_gradient_columns " + with, y);
      loops.finish_gradient_line(g.data(), x.data(), r, y.data(), n, m, scale, weight.data(), nullptr, finish);
      record("finish_gradient_line " + with, y);
    }
  loops.gradient_apply_plane(g.data(), x.data(), y.data(), n, m, scale, shift, A(0.9));
  record("gradient_apply_plane " + of, y);
  loops.gradient_apply_columns(g.data(), x.data(), y.data(), n, mean.data(), weight.data(), bias.data(), c.data());
  record("gradient_apply_columns " + of, y);
  loops.gradient_apply_line(g.data(), x.data(), weight.data(), y.data(), n, m, scale, shift, A(0.9), first.data(),
                            second.data());
  record("gradient_apply_line " + of, y);
  record("gradient_apply_line, weight " + of, first);
  record("gradient_apply_line, bias " + of, second);
  std::vector<double> means(size_t(n), 0.1), m2s(size_t(n), 2.0), totals(size_t(n), 1.0);
  std::vector<A> squares;
  for (A value : x) squares.push_back(value * value * 3);
  loops.merge_deviations(n, 64, 32, mean.data(), x.data(), squares.data(), means.data(), m2s.data());
  record("merge_deviations, mean " + of, means);
  record("merge_deviations, m2 " + of, m2s, 64);
  loops.add_and_clear(first.data(), totals.data(), n);
  record("add_and_clear " + of, totals);
  record("add_and_clear, cleared " + of, first);
  std::vector<uint8_t> mask;
  for (int64_t i = 0; i < n; ++i) mask.push_back(uint8_t(next_value() > 0));
  loops.select(x.data(), mask.data(), m, y.data(), n);
  record("select " + of, y, 0);
  const auto two_rows = inputs<A>(2 * n);
  std::vector<A> copied(size_t(2 * n + 5), A(7));
  loops.copy_rows(two_rows.data(), n, copied.data(), n + 5, 2, n);
  record("copy_rows " + of, copied, 0);
}

template <class T>
void run_stored(const std::string& type, int64_t n) {
  typedef ArithmeticOf<T> A;
  const StoredLoops<T>& loops = stored_loops<T>();
  const std::string of = type + " " + std::to_string(n);
  constexpr int64_t kRows = 9;
  const auto x = inputs<T>(kRows * n), g = inputs<T>(kRows * n), residual = inputs<T>(n), total = inputs<T>(kRows * n);
  const auto weight = inputs<A>(n), bias = inputs<A>(n), mean = inputs<A>(n), b = inputs<A>(n);
  const A m = A(0.3), scale = A(1.7), shift = A(-0.4);
  std::vector<T> y(size_t(kRows * n)), z(y);
  for (T& value : y) narrow(0, &value);
  z = y;
  const std::vector<T> zeros = y;
  A s = 0, q = 0;
  loops.deviations(x.data(), n, m, &s, &q);
  record("stored deviations " + of, std::vector<A>{s, q}, 16. * double(n));
  loops.gradient_sums_line(g.data(), x.data(), weight.data(), n, m, &s, &q);
  record("stored gradient_sums_line " + of, std::vector<A>{s, q}, 16. * double(n));
  loops.apply_line(x.data(), y.data(), n, m, scale, weight.data(), bias.data(), 0, false);
  record("stored apply_line " + of, y);
  for (int lines : {1, kLinesAtOnce}) {
    std::vector<A> g_weight(size_t(n), A(0)), g_bias(g_weight);
    const LineBackprop<A> back[kLinesAtOnce] = {
        {m, scale, shift, A(0.9)}, {m, shift, scale, A(0.1)}, {shift, m, scale, A(0.2)}, {m, m, m, A(0.3)}};
    y = zeros;
    loops.gradient_apply_line(lines, n, g.data(), x.data(), lines == 1 ? nullptr : total.data(), y.data(), n,
                              weight.data(), back, g_weight.data(), g_bias.data(), false);
    record("stored gradient_apply_line " + of, y);
    record("stored gradient_apply_line, weight " + of, g_weight);
    record("stored gradient_apply_line, bias " + of, g_bias);
  }
  for (int activation : {int(kNone), int(kRelu), int(kRelu6)})
    for (const T* r : {static_cast<const T*>(nullptr), residual.data()}) {
      const Finish<A> finish = finish_of<A>(activation);
      const ChannelAffine<A> f{m, scale, shift};
      const std::string with = of + (r ? " + residual " : " ") + std::to_string(activation);
      y = zeros, z = zeros;
      loops.apply_plane(x.data(), r, y.data(), n, f, finish, false);
      record("stored apply_plane " + with, y);
      loops.gradient_sums_plane(g.data(), x.data(), r, n, f, finish, &s, &q);
      record("stored gradient_sums_plane " + with, std::vector<A>{s, q}, 16. * double(n));
      loops.gradient_apply_plane(g.data(), x.data(), r, y.data(), r ? z.data() : nullptr, n, f, scale, shift, A(0.9),
                                 finish, false);
      record("stored gradient_apply_plane " + with, y);
      record("stored gradient_apply_plane, residual " + with, z);
      loops.apply_columns(x.data(), r, y.data(), n, mean.data(), weight.data(), bias.data(), finish, false);
      record("stored apply_columns " + with, y);
    }
  loops.gradient_apply_columns(g.data(), x.data(), y.data(), n, mean.data(), weight.data(), bias.data(), b.data(),
                               false);
  record("stored gradient_apply_columns " + of, y);
  const T *xs[kRows], *gs[kRows];
  for (int64_t r = 0; r < kRows; ++r) xs[r] = x.data() + r * n, gs[r] = g.data() + r * n;
  std::vector<A> shifts(size_t(n), A(0)), sums(shifts), squares(shifts);
  loops.column_mean(xs, kRows, n, shifts.data());
  record("column_mean " + of, shifts);
  loops.column_deviations(xs, kRows, n, 0, shifts.data(), sums.data(), squares.data());
  record("column_deviations, sum " + of, sums, 64);
  record("column_deviations, squares " + of, squares, 64);
  loops.column_gradient_sums(gs, xs, kRows, n, 0, mean.data(), sums.data(), squares.data());
  record("column_gradient_sums, sum " + of, sums, 64);
  record("column_gradient_sums, sum_x " + of, squares, 64);
}

// All 16-bit values there and back.
void run_conversions() {
  std::vector<uint16_t> all(65536), back(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = uint16_t(i);
  std::vector<float> floats(65536);
  storage().load_bfloat16(all.data(), floats.data(), 65536);
  record("load_bfloat16", floats, 0);
  storage().store_bfloat16(floats.data(), back.data(), 65536);
  record("store_bfloat16", std::vector<double>(back.begin(), back.end()), 0);
  storage().load_float16(all.data(), floats.data(), 65536);
  record("load_float16", floats, 0);
  for (float& value : floats) value *= 1.0003f;  // so that it is rounded
  storage().store_float16(floats.data(), back.data(), 65536);
  // A NaN's payload is the processor's.
  for (size_t i = 0; i < back.size(); ++i)
    if ((back[i] & 0x7fff) > 0x7c00) back[i] = 0x7e00;
  record("store_float16", std::vector<double>(back.begin(), back.end()), 0);
  const auto source = inputs<float>(1000);
  std::vector<float> streamed(1003, 0.0f);
  storage().stream(source.data(), streamed.data() + 3, 4000);
  storage().fence();
  record("stream", streamed, 0);
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "name") return std::puts(instruction_set()) < 0;
  for (int64_t n : {1, 3, 7, 16, 37, 129, 300}) {
    run_loops<float>("float", n);
    run_loops<double>("double", n);
    run_stored<float>("float", n);
    run_stored<double>("double", n);
    run_stored<bfloat16>("bfloat16", n);
    run_stored<float16>("float16", n);
  }
  run_conversions();
}
