#include "tests/golden/error_bound.h"

#include <algorithm>
#include <cmath>

namespace adamant::golden {
namespace {

// The smallest normal float: less is flushed.
constexpr double kFlushed = 0x1p-126;

// r of the header.
double Rounding(double x) { return std::fabs(static_cast<float>(x) - x); }

// h of the header. What the kernel rounds may be in the next binade, so near to it is `x`.
double HalfUlp(double x) { return std::ldexp(1.0, std::max(std::ilogb(x * (1 + 0x1p-16)), -126) - 24); }

double Flushed(float x) { return x == 0 ? kFlushed : 0; }

// A number as the kernel may have it, before it rounded it, and how far that is off the exact one at most.
struct Approximate {
  double value;
  double error;
};

// What the optimizer learns from.
Approximate Gradient(const ExactStep& step, float raw, float p, double p_error, double coupled_decay, double g_min) {
  Approximate g = {step.scale * raw, std::fabs(raw) * Rounding(step.scale) + HalfUlp(step.scale * raw)};
  if (std::fabs(g.value) < g_min * (1 + 0x1p-20)) g.error += std::fabs(g.value);
  if (std::fabs(g.value) + g.error >= step.clip) {
    const bool certainly = std::fabs(g.value) - g.error >= step.clip;
    g.value = std::clamp(g.value, -step.clip, step.clip);
    g.error = (certainly ? 0 : g.error) + Rounding(step.clip);
  }
  if (coupled_decay > 0) {
    g.value += coupled_decay * p;
    g.error += coupled_decay * p_error + std::fabs(p) * Rounding(coupled_decay) + HalfUlp(g.value);
    if (std::fabs(g.value) - g.error < g_min) g.error += g_min;
  }
  return g;
}

// Of the square root of v, or of the largest v.
double RootError(double v, double error) {
  const double root = std::sqrt(v);
  return std::max(root - std::sqrt(std::max(v - error, 0.0)), std::sqrt(v + error) - root) + HalfUlp(root);
}

Element<double> NextAdam(const v1::Adam& adam, const ExactStep& step, float raw, const Element<float>& before,
                         const Element<float>& after, const Element<double>& errors) {
  const double beta1 = adam.beta1(), beta2 = adam.beta2(), omb1 = 1 - beta1, omb2 = 1 - beta2;
  const double bc1 = 1 - std::pow(beta1, step.t), inv_sqrt_bc2 = 1 / std::sqrt(1 - std::pow(beta2, step.t));
  const double step_size = step.learning_rate / bc1;
  const double p = before.parameter, m = after.slots[0], v = after.slots[1];
  const bool decoupled = adam.decoupled_weight_decay();
  const auto [g, g_error] = Gradient(step, raw, before.parameter, errors.parameter, decoupled ? 0 : adam.weight_decay(),
                                     std::sqrt(0x1p-125 / omb2));

  const double m_error = beta1 * errors.slots[0] + std::fabs(before.slots[0]) * Rounding(beta1) + omb1 * g_error +
                         std::fabs(g) * Rounding(omb1) + HalfUlp(omb1 * g) + HalfUlp(m) + Flushed(after.slots[0]);
  const double v_error = beta2 * errors.slots[1] + before.slots[1] * Rounding(beta2) +
                         omb2 * (2 * std::fabs(g) + g_error) * g_error + g * g * Rounding(omb2) +
                         omb2 * HalfUlp(g * g) + HalfUlp(omb2 * g * g) + HalfUlp(v) + Flushed(after.slots[1]);
  const double largest_v_error = std::max(errors.slots[2], v_error);

  const double s = adam.amsgrad() ? after.slots[2] : v;
  const double d = std::sqrt(s) * inv_sqrt_bc2 + adam.eps();
  const double d_error = RootError(s, adam.amsgrad() ? largest_v_error : v_error) * inv_sqrt_bc2 +
                         std::sqrt(s) * Rounding(inv_sqrt_bc2) + Rounding(adam.eps()) + HalfUlp(d);
  double u = m / d;
  double u_error = (m_error + std::fabs(u) * d_error) / std::max(d - d_error, adam.eps()) + HalfUlp(u);
  double p_error = errors.parameter;
  if (decoupled && adam.weight_decay() > 0) {
    const double wd_bc1 = adam.weight_decay() * bc1;
    u += wd_bc1 * p;
    u_error += std::fabs(p) * Rounding(wd_bc1) + HalfUlp(u) + (std::fabs(p) < 0x1p-100 ? wd_bc1 * 0x1p-100 : 0);
    p_error *= std::fabs(1 - step.learning_rate * adam.weight_decay());
  }
  p_error += step_size * u_error + std::fabs(u) * Rounding(step_size) + HalfUlp(after.parameter);
  return {p_error, {m_error, v_error, largest_v_error}};
}

Element<double> NextSgd(const v1::Sgd& sgd, const ExactStep& step, float raw, const Element<float>& before,
                        const Element<float>& after, const Element<double>& errors) {
  const auto [g, g_error] =
      Gradient(step, raw, before.parameter, errors.parameter, sgd.weight_decay(), /*g_min=*/kFlushed);
  double u = g, u_error = g_error, buffer_error = 0;
  if (sgd.momentum() > 0) {
    const double momentum = step.t == 1 ? 0 : sgd.momentum(), omd = step.t == 1 ? 1 : 1 - sgd.dampening();
    const double buffer = after.slots[0];
    buffer_error = momentum * errors.slots[0] + std::fabs(before.slots[0]) * Rounding(momentum) + omd * g_error +
                   std::fabs(g) * Rounding(omd) + HalfUlp(omd * g) + HalfUlp(buffer) + Flushed(after.slots[0]);
    u = buffer;
    u_error = buffer_error;
    if (sgd.nesterov()) {
      u = g + sgd.momentum() * buffer;
      u_error = g_error + sgd.momentum() * buffer_error + std::fabs(buffer) * Rounding(sgd.momentum()) + HalfUlp(u);
    }
  }
  const double p_error = errors.parameter + step.learning_rate * u_error + std::fabs(u) * Rounding(step.learning_rate) +
                         HalfUlp(after.parameter);
  return {p_error, {buffer_error}};
}

}  // namespace

Element<double> NextErrors(const v1::ParameterGroup& group, const ExactStep& step, float gradient,
                           const Element<float>& before, const Element<float>& after, const Element<double>& errors) {
  return group.has_sgd() ? NextSgd(group.sgd(), step, gradient, before, after, errors)
                         : NextAdam(group.adam(), step, gradient, before, after, errors);
}

}  // namespace adamant::golden
