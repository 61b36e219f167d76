// What a layer does with few tokens, in float32: products with a matrix at the price of reading it once, and attention where keys and values
// lie; and what a rule asks after it. Compiled by few.py, called through ctypes. Numbers of a token are the same, bit by bit, with whichever tokens it comes, and on
// however many threads: the order of additions depends on the width of a product alone, and on the slots that a token looks at.
//
// Products. Each thread has its share of the matrix's rows and walks them a few at a time; of each it reads 16 numbers and multiplies them with those
// of every token, which stay in the first cache because the width is taken in pieces. At most 16 sums are under way, each a vector of 16
// parts; they are folded together, all at once, into one vector with a sum in each lane.
//
// Attention. Each thread has some of the pairs of a token and a head, four at a time that share keys and values. Queries and keys are turned
// to their positions, keys and values written to their slots, and each query looks at the slots up to its own: products with sixteen keys
// at once, exponentials in lanes, and the sum of the values.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

constexpr int LANES = 16;
constexpr int64_t PIECE = 640;  // of the width: 16 tokens of it are 40 KiB
constexpr int MOST_WIDTH = 512;  // of a head
constexpr int TOGETHER = 4;      // queries that read a key together

typedef float Lanes __attribute__((vector_size(4 * LANES)));

struct Job {
  const float* matrix;  // (rows, width)
  const float* tokens;  // (count, width)
  const float* onto;    // (count, rows), what the first piece is added to, or none
  float* out;           // (count, rows)
  int64_t rows, width;
};

inline Lanes take(const float* from, int64_t some = LANES) {
  Lanes lanes{};
  std::memcpy(&lanes, from, some * sizeof(float));
  return lanes;
}

#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

inline Lanes fold8(Lanes a, Lanes b) {
  return MIX(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         MIX(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

inline Lanes fold4(Lanes a, Lanes b) {
  return MIX(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
         MIX(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
}

inline Lanes fold2(Lanes a, Lanes b) {
  return MIX(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
         MIX(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}

inline Lanes fold1(Lanes a, Lanes b) {
  return MIX(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         MIX(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

// Lane i of the result is the sum of all lanes of parts[i].
inline Lanes folded(Lanes* parts) {
  for (int i = 0; i < 8; i++) parts[i] = fold8(parts[i], parts[i + 8]);
  for (int i = 0; i < 4; i++) parts[i] = fold4(parts[i], parts[i + 4]);
  for (int i = 0; i < 2; i++) parts[i] = fold2(parts[i], parts[i + 2]);
  return fold1(parts[0], parts[1]);
}

// One piece of the width, [start, stop), of the matrix's rows [row, end), ROWS at a time, for COUNT tokens.
template <int COUNT, int ROWS>
void piece(const Job& job, int64_t start, int64_t stop, int64_t row, int64_t end) {
  static_assert(COUNT * ROWS <= LANES, "a vector holds no more sums");
  const int64_t width = job.width, whole = start + (stop - start) / LANES * LANES;
  const float* onto = start ? job.out : job.onto;
  for (; row + ROWS <= end; row += ROWS) {
    const float* here = job.matrix + row * width;
    Lanes parts[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) parts[i] = Lanes{};
    for (int64_t at = start; at < whole; at += LANES) {
      Lanes matrix[ROWS];
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++) {
        matrix[r] = take(here + r * width + at);
        __builtin_prefetch(here + (r + ROWS) * width + at, 0, 3);
      }
#pragma GCC unroll 16
      for (int t = 0; t < COUNT; t++) {
        const Lanes token = take(job.tokens + t * width + at);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) parts[t * ROWS + r] += matrix[r] * token;
      }
    }
    if (whole < stop)
      for (int t = 0; t < COUNT; t++)
        for (int r = 0; r < ROWS; r++)
          parts[t * ROWS + r] += take(here + r * width + whole, stop - whole) * take(job.tokens + t * width + whole, stop - whole);
    const Lanes sums = folded(parts);
#pragma GCC unroll 16
    for (int t = 0; t < COUNT; t++)
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++) {
        const int64_t place = t * job.rows + row + r;
        job.out[place] = onto ? onto[place] + sums[t * ROWS + r] : sums[t * ROWS + r];
      }
  }
  if constexpr (ROWS > 1)
    if (row < end) piece<COUNT, 1>(job, start, stop, row, end);
}

// The matrix's rows [from, to), the whole width.
template <int COUNT, int ROWS>
void share(const Job& job, int64_t from, int64_t to) {
  const int64_t pieces = (job.width + PIECE - 1) / PIECE;
  const int64_t step = ((job.width + pieces - 1) / pieces + LANES - 1) / LANES * LANES;
  for (int64_t start = 0; start < job.width; start += step)
    piece<COUNT, ROWS>(job, start, start + step < job.width ? start + step : job.width, from, to);
}

template <int COUNT, int ROWS>
void product(const Job& job, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    share<COUNT, ROWS>(job, job.rows * me / all, job.rows * (me + 1) / all);
  }
}

// e to the x for x <= 0, to float32's rounding; 0 from -87 down, and what is no number stays none. By 2^n 2^f, f in [-1/2, 1/2], with f's series to the seventh term.
inline Lanes exponential(Lanes x) {
  typedef int32_t Whole __attribute__((vector_size(4 * LANES)));
  const Lanes shift = Lanes{} + 12582912.0f, power = x * 1.44269504f, n = (power + shift) - shift;
  const Lanes f = x - n * 0.693359375f + n * 2.12194440e-4f;
  Lanes sum = f * (1.0f / 5040) + 1.0f / 720;
  for (float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f}) sum = sum * f + term;
  const Whole scale = (__builtin_convertvector(n, Whole) + 127) << 23;
  Lanes two;
  std::memcpy(&two, &scale, sizeof two);
  const Whole kept = ~(x <= -87.0f), bits = kept & (Whole)(sum * two);
  Lanes out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// x / (1 + e^-v), where v is x (SiLU), or 2 sqrt(2 / pi) (x + 0.044715 x^3), which makes it GELU by the tangent. In one place, so that a
// number does not depend on the lane in which it lies.
__attribute__((noinline)) Lanes bent(Lanes x, bool tangent) {
  const Lanes v = tangent ? 1.5957691216f * (x + 0.044715f * x * x * x) : x;
  const Lanes power = exponential(v < 0.0f ? v : -v), whole = Lanes{} + 1.0f;
  return x * ((v < 0.0f ? power : whole) / (whole + power));
}

// What a gated feed-forward net holds in the middle: each thread bends its own rows of the gate and multiplies them with those of the other.
template <int COUNT, int ROWS>
void gated(const Job& gate, const Job& up, bool tangent, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t from = up.rows * me / all, to = up.rows * (me + 1) / all, own = to - from;
    std::vector<float> bend(COUNT * own);
    share<COUNT, ROWS>(Job{gate.matrix + from * gate.width, gate.tokens, nullptr, bend.data(), own, gate.width}, 0, own);
    share<COUNT, ROWS>(up, from, to);
    for (int64_t t = 0; t < COUNT; t++)
      for (int64_t at = 0; at < own; at += LANES) {
        const int64_t some = std::min<int64_t>(LANES, own - at);
        float* here = up.out + t * up.rows + from + at;
        const Lanes made = bent(take(bend.data() + t * own + at, some), tangent) * take(here, some);
        std::memcpy(here, &made, some * sizeof(float));
      }
  }
}

struct Look {
  const float *queries, *keys, *values;  // (rows, tokens, heads, width), (rows, tokens, groups, width) twice
  const float *cosine, *sine;            // (rows or 1, tokens, width): x cosine + (x rolled by half) sine is x turned
  float *held_keys, *held_values;        // (places, groups, slots, width)
  float* out;                            // (rows, tokens, heads, width)
  const int64_t *starts, *places;        // of each row: slot of its first token, and where it lies
  int64_t rows, tokens, heads, groups, width, slots, window, own;  // window: slots that are looked at; own: whether each row has its turn
  float scale;
};

inline void turned(const Look& look, int64_t row, int64_t token, const float* from, float* to, float times) {
  const int64_t half = look.width / 2, at = ((look.own ? row * look.tokens : 0) + token) * look.width;
  for (int64_t i = 0; i < look.width; i++)
    to[i] = (from[i] * look.cosine[at + i] + from[i < half ? i + half : i - half] * look.sine[at + i]) * times;
}

// Keys and values of the new tokens of a row go to their slots, for one group of heads.
void written(const Look& look, int64_t row, int64_t group) {
  float* keys = look.held_keys + (look.places[row] * look.groups + group) * look.slots * look.width;
  float* values = look.held_values + (look.places[row] * look.groups + group) * look.slots * look.width;
  for (int64_t token = 0; token < look.tokens; token++) {
    const int64_t from = ((row * look.tokens + token) * look.groups + group) * look.width, to = (look.starts[row] + token) * look.width;
    turned(look, row, token, look.keys + from, keys + to, 1.0f);
    std::memcpy(values + to, look.values + from, look.width * sizeof(float));
  }
}

// The same sums of values for QUERIES queries: slots [start, stop), V vectors of a head's width. scores: a query's are `room` apart.
template <int QUERIES, int V>
void weighed(const float* values, int64_t width, const float* scores, int64_t room, int64_t start, int64_t stop, Lanes* sums, int64_t apart) {
  Lanes own[QUERIES][V];
#pragma GCC unroll 4
  for (int q = 0; q < QUERIES; q++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) own[q][v] = sums[q * apart + v];
  for (int64_t slot = start; slot < stop; slot++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      const Lanes value = take(values + slot * width + v * LANES);
#pragma GCC unroll 4
      for (int q = 0; q < QUERIES; q++) own[q][v] += scores[q * room + slot] * value;
    }
#pragma GCC unroll 4
  for (int q = 0; q < QUERIES; q++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) sums[q * apart + v] = own[q][v];
}

// What QUERIES pairs of a token and a head give, from the one numbered `pair` on, which share a row and a group's keys and values; pairs are
// numbered token by token. Slots are taken sixteen at a time from a multiple of sixteen on, so that nothing hangs on who shares the call.
// VECTORS: of a head's width, a multiple of four, or 0 where it is only known now. scores: room for QUERIES times `room`, all slots and a vector more.
template <int VECTORS, int QUERIES>
void attended(const Look& look, int64_t row, int64_t group, int64_t pair, float* scores, int64_t room) {
  const int64_t heads = look.heads / look.groups, width = look.width, vectors = VECTORS ? VECTORS : width / LANES;
  const float* keys = look.held_keys + (look.places[row] * look.groups + group) * look.slots * width;
  const float* values = look.held_values + (look.places[row] * look.groups + group) * look.slots * width;
  alignas(64) float queries[QUERIES * MOST_WIDTH];
  int64_t places[QUERIES], firsts[QUERIES], ends[QUERIES];
  for (int q = 0; q < QUERIES; q++) {
    const int64_t token = (pair + q) / heads, head = group * heads + (pair + q) % heads;
    places[q] = ((row * look.tokens + token) * look.heads + head) * width;
    ends[q] = look.starts[row] + token + 1;
    firsts[q] = std::max<int64_t>(0, ends[q] - look.window);
    turned(look, row, token, look.queries + places[q], queries + q * width, look.scale);
  }
  const int64_t begin = firsts[0] / LANES * LANES, last = ends[QUERIES - 1] - 1;  // tokens rise with the pairs
  typedef int32_t Whole __attribute__((vector_size(4 * LANES)));
  const Whole lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const auto seen = [&](int q, int64_t slot) {
    return (lanes >= static_cast<int32_t>(firsts[q] - slot)) & (lanes < static_cast<int32_t>(ends[q] - slot));
  };
  Lanes most[QUERIES];
  for (int q = 0; q < QUERIES; q++) most[q] = Lanes{} - 3.0e38f;
  for (int64_t slot = begin; slot <= last; slot += LANES) {
    Lanes parts[QUERIES][LANES];
    for (int i = 0; i < LANES; i++) {
      const float* key = keys + std::min(slot + i, last) * width;  // beyond the last slot: the last again
      Lanes sums[QUERIES] = {};
#pragma GCC unroll 16
      for (int64_t v = 0; v < vectors; v++) {
        const Lanes part = take(key + v * LANES);
#pragma GCC unroll 4
        for (int q = 0; q < QUERIES; q++) sums[q] += take(queries + q * width + v * LANES) * part;
      }
#pragma GCC unroll 4
      for (int q = 0; q < QUERIES; q++) parts[q][i] = sums[q];
    }
    for (int q = 0; q < QUERIES; q++) {
      const Lanes found = folded(parts[q]);
      most[q] = (found > most[q]) & seen(q, slot) ? found : most[q];
      std::memcpy(scores + q * room + slot, &found, sizeof found);
    }
  }
  Lanes sums[QUERIES * (VECTORS ? VECTORS : MOST_WIDTH / LANES)] = {};
  float all[QUERIES];
  for (int q = 0; q < QUERIES; q++) {
    float top = most[q][0];
    for (int i = 1; i < LANES; i++) top = std::max(top, most[q][i]);
    Lanes total{};
    for (int64_t slot = begin; slot <= last; slot += LANES) {
      float* here = scores + q * room + slot;
      const Lanes power = exponential(take(here) - top), found = seen(q, slot) ? power : Lanes{};
      total += found;
      std::memcpy(here, &found, sizeof found);
    }
    all[q] = 0.0f;
    for (int i = 0; i < LANES; i++) all[q] += total[i];
  }
  // Slots that all look at are summed together; before and after them each query has its own.
  const int64_t from = firsts[QUERIES - 1], to = ends[0];
  const auto some = [&](int64_t v, auto size) {
    constexpr int V = decltype(size)::value;
    const float* column = values + v * LANES;
    for (int q = 0; q < QUERIES; q++)
      weighed<1, V>(column, width, scores + q * room, room, firsts[q], std::min(from, ends[q]), sums + q * vectors + v, vectors);
    weighed<QUERIES, V>(column, width, scores, room, from, to, sums + v, vectors);
    for (int q = 0; q < QUERIES; q++)
      weighed<1, V>(column, width, scores + q * room, room, std::max(to, from), ends[q], sums + q * vectors + v, vectors);
  };
  if constexpr (VECTORS)
    for (int64_t v = 0; v < VECTORS; v += 4) some(v, std::integral_constant<int, 4>());
  else
    for (int64_t v = 0; v < vectors; v++) some(v, std::integral_constant<int, 1>());
  for (int q = 0; q < QUERIES; q++)
    for (int64_t i = 0; i < vectors; i++) {
      const Lanes given = sums[q * vectors + i] / all[q];
      std::memcpy(look.out + places[q] + i * LANES, &given, sizeof given);
    }
}

template <int VECTORS>
void looked(const Look& look, int threads) {
  const int64_t pairs = look.tokens * (look.heads / look.groups), shared = look.rows * look.groups;
  const int64_t blocks = (pairs + TOGETHER - 1) / TOGETHER;
  const int64_t room = (look.slots + 2 * LANES) / LANES * LANES;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scores(TOGETHER * room);
#pragma omp for
    for (int64_t each = 0; each < shared; each++) written(look, each / look.groups, each % look.groups);
#pragma omp for schedule(static, 1)
    for (int64_t job = 0; job < shared * blocks; job++) {
      const int64_t row = job / blocks / look.groups, group = job / blocks % look.groups, pair = job % blocks * TOGETHER;
      switch (std::min<int64_t>(TOGETHER, pairs - pair)) {
        case 1: attended<VECTORS, 1>(look, row, group, pair, scores.data(), room); break;
        case 2: attended<VECTORS, 2>(look, row, group, pair, scores.data(), room); break;
        case 3: attended<VECTORS, 3>(look, row, group, pair, scores.data(), room); break;
        default: attended<VECTORS, 4>(look, row, group, pair, scores.data(), room);
      }
    }
  }
}

}  // namespace

// For each number of tokens, how many rows of a matrix are walked at a time.
#define CASES                                                                                    \
  CASE(1, 8) CASE(2, 8) CASE(3, 4) CASE(4, 4) CASE(5, 3) CASE(6, 2) CASE(7, 2) CASE(8, 2)        \
  CASE(9, 1) CASE(10, 1) CASE(11, 1) CASE(12, 1) CASE(13, 1) CASE(14, 1) CASE(15, 1) CASE(16, 1)

// out (count, rows) = tokens (count, width) by the transpose of matrix (rows, width), plus onto (count, rows) where it is given. All lie row
// by row. 0, or 1 for more than 16 tokens.
extern "C" int exitwise_few(const float* matrix, const float* tokens, const float* onto, float* out, int64_t count, int64_t rows,
                            int64_t width, int threads) {
  const Job job{matrix, tokens, onto, out, rows, width};
  switch (count) {
#define CASE(count, rows)               \
  case count:                           \
    product<count, rows>(job, threads); \
    return 0;
    CASES
#undef CASE
  }
  return 1;
}

// out (count, rows) = the products of tokens with gate, bent, times those with up; see above. 0, or 1 for more than 16 tokens.
extern "C" int exitwise_gated(const float* gate, const float* up, const float* tokens, float* out, int64_t count, int64_t rows,
                              int64_t width, int tangent, int threads) {
  const Job one{gate, tokens, nullptr, nullptr, rows, width}, other{up, tokens, nullptr, out, rows, width};
  switch (count) {
#define CASE(count, rows)                            \
  case count:                                        \
    gated<count, rows>(one, other, tangent, threads); \
    return 0;
    CASES
#undef CASE
  }
  return 1;
}

// Attention of few tokens; see Look. 0, or 1 for a width that is no multiple of 16 or above 512.
extern "C" int exitwise_attend(const Look* look, int threads) {
  if (look->width % LANES || look->width > MOST_WIDTH) return 1;
  switch (look->width) {
    case 64: looked<4>(*look, threads); break;
    case 128: looked<8>(*look, threads); break;
    case 256: looked<16>(*look, threads); break;
    default: looked<0>(*look, threads);
  }
  return 0;
}

// out (count) = the cosine of each row of one and of other (count, width); 0 where one of them is zero.
extern "C" void exitwise_cosines(const float* one, const float* other, float* out, int64_t count, int64_t width) {
  const int64_t whole = width / LANES * LANES;
  for (int64_t row = 0; row < count; row++, one += width, other += width) {
    Lanes sums[3] = {};
    const auto add = [&sums](Lanes a, Lanes b) {
      sums[0] += a * b;
      sums[1] += a * a;
      sums[2] += b * b;
    };
    for (int64_t at = 0; at < whole; at += LANES) add(take(one + at), take(other + at));
    add(take(one + whole, width - whole), take(other + whole, width - whole));
    float dots[3] = {};
    for (int s = 0; s < 3; s++)
      for (int i = 0; i < LANES; i++) dots[s] += sums[s][i];
    const float lengths = std::sqrt(dots[1]) * std::sqrt(dots[2]);
    out[row] = dots[0] / (lengths < 1e-8f ? 1e-8f : lengths);  // what is no number stays none
  }
}

// out (count, width) = each row of states (count, width) times gain (width), by the root of its squares' sum plus floor.
extern "C" void exitwise_norm(const float* states, const float* gain, float floor, float* out, int64_t count, int64_t width) {
  const int64_t whole = width / LANES * LANES;
  for (int64_t row = 0; row < count; row++, states += width, out += width) {
    Lanes squares[4] = {};
    for (int64_t at = 0; at < whole; at += LANES) squares[at / LANES % 4] += take(states + at) * take(states + at);
    squares[0] += take(states + whole, width - whole) * take(states + whole, width - whole);
    const Lanes folded = (squares[0] + squares[1]) + (squares[2] + squares[3]);
    float sum = floor;
    for (int i = 0; i < LANES; i++) sum += folded[i];
    const float by = 1.0f / std::sqrt(sum);
    for (int64_t at = 0; at < width; at++) out[at] = states[at] * gain[at] * by;
  }
}
