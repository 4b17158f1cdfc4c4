/*
 * ArrowQuant quantizes diffusion-model weights to INT2, INT4 and INT8.
 *
 * What holds for every function:
 *
 * - A call that can fail returns an `aq_status`: AQ_OK (0) or one of the AQ_ERROR codes. Its last
 *   parameter is an `aq_error` of the caller's for code and message, or NULL. Start with
 *   `aq_error err = AQ_INIT(aq_error);`. No call keeps an error anywhere else.
 * - Inputs come first, outputs last. Outputs are written only on success.
 * - Structs that may grow begin with `uint32_t struct_size`, the caller's own `sizeof`. Start each
 *   with AQ_INIT, which sets that and all else to 0: `aq_run_options options =
 *   AQ_INIT(aq_run_options);`. The library reads and writes no more than struct_size bytes, and
 *   takes the default for the rest. In an option 0 or NULL means the default; where 0 is a value of
 *   its own, the field says how to ask for it. A struct_size of 0 is refused, except in an
 *   `aq_error`.
 * - A handle (`aq_config *`, `aq_model *`, ...) is made by a call and given back to the `_free`
 *   function of its kind, for which NULL is a no-op. A handle that was freed, or is of another
 *   kind, is refused as long as its memory has not been taken for another handle.
 * - A tensor, tile, layer, row or key that does not exist is an AQ_ERROR_TENSOR, whether it was asked
 *   for by name or by index. (A setting that does not exist is an AQ_ERROR_CONFIG.)
 * - `const aq_x *` may be used by several threads at once; `aq_x *` by one at a time. Handles may
 *   move between threads.
 * - Input strings end in NUL and are UTF-8, paths too, on every system. Output strings belong to the
 *   handle they came from: they last until it is freed, or changed by a call that takes it without
 *   const.
 * - A parameter or field that ends in `_len` counts bytes, one that ends in `_count` counts values.
 * - Callbacks run on the thread that made the call, never on another, except an aq_fitness_fn whose
 *   caller asked for it. Returning false cancels: the call then returns AQ_ERROR_CANCELLED and leaves
 *   no file behind. A callback may call the library, but must not change or free what its own call
 *   uses, let an exception out, jump out, or end its thread.
 * - After fork() in a process with other threads the child may only exec().
 * - Pointers to data need no alignment, unless they are of another type than void.
 * - No failure inside the library crosses into the caller: a bug in it is an AQ_ERROR_INTERNAL with a
 *   message.
 * - AQ_ABI_VERSION and the SONAME change together, with every release that breaks programs built with
 *   an earlier header, before version 1.0 too. As long as they stay, functions, constants and their
 *   meaning stay, structs only grow at their end, and enumerations and settings only gain values. A
 *   program that loads the library at run time compares aq_abi_version() with AQ_ABI_VERSION first.
 */

#ifndef ARROWQUANT_H
#define ARROWQUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Define AQ_NO_STD for firmware: the library built without a standard library has kernels that
 * decode, and nothing else. */
#ifndef AQ_NO_STD
#define AQ_STD
#endif

/*
 * Linkage.
 *
 * AQ_API stands before every function. On Windows define AQ_DLL in programs that use the DLL, and
 * AQ_DLL_EXPORTS in a DLL of your own that contains the static library and exports its functions.
 * For tools that read this header, such as cffi, define AQ_API as nothing.
 */
#ifndef AQ_API
#if defined(_WIN32) || defined(__CYGWIN__)
#if defined(AQ_DLL_EXPORTS)
#define AQ_API __declspec(dllexport)
#elif defined(AQ_DLL)
#define AQ_API __declspec(dllimport)
#else
#define AQ_API
#endif
#elif defined(__GNUC__)
#define AQ_API __attribute__((visibility("default")))
#else
#define AQ_API
#endif
#endif

/*
 * Version of this header.
 */
#define AQ_VERSION_MAJOR 0
#define AQ_VERSION_MINOR 1
#define AQ_VERSION_PATCH 0

/*
 * Initial values.
 */
#ifdef __cplusplus
template <class T>
inline T aq_init() {
  T value = T();
  value.struct_size = sizeof(T);
  return value;
}
#define AQ_INIT(type) aq_init<type>()
#else
/** Begins a struct: sets struct_size to sizeof(type), and all else to 0. */
#define AQ_INIT(type) { .struct_size = sizeof(type) }
#endif

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Status codes and errors.
 */

/** Bytes of an error's message, its NUL included. */
#define AQ_MESSAGE_SIZE 512

/** Result of a call: AQ_OK, or why it failed. */
typedef int32_t aq_status;

/**
 * Error of a call. Start with AQ_INIT(aq_error); every call that receives it sets code and
 * message, to AQ_OK and "" on success.
 */
typedef struct aq_error {
  /** sizeof(aq_error); 0 stands for today's size. */
  uint32_t struct_size;
  /** The status that was returned. */
  aq_status code;
  /**
   * UTF-8 that names the file, the tensor and the reason. A message that is too long is cut in
   * the middle.
   */
  char message[AQ_MESSAGE_SIZE];
} aq_error;

#define AQ_OK 0

/** A setting is unknown or out of range. */
#define AQ_ERROR_CONFIG 1

/** The operating system refused to open, read or write a file. */
#define AQ_ERROR_IO 2

/** A file is damaged, incomplete or of another kind. */
#define AQ_ERROR_FILE 3

/**
 * A tensor is not what it should be, or cannot be treated as asked; or a tensor, tile, layer or
 * timestep that was asked for by name or index does not exist.
 */
#define AQ_ERROR_TENSOR 4

/** A plan does not match its source, or cannot be read. */
#define AQ_ERROR_PLAN 5

/** A checksum does not match: the data is damaged. */
#define AQ_ERROR_CHECKSUM 6

/** A callback returned false. */
#define AQ_ERROR_CANCELLED 7

/** A bug in the library. */
#define AQ_ERROR_INTERNAL 8

/** An argument is invalid: NULL, a wrong length, a handle that was freed, text that is not UTF-8. */
#define AQ_ERROR_ARGUMENT 9

/*
 * Versions, and the numbers that name formats and dtypes.
 */

/**
 * Version of the binary interface, and number of the SONAME. Changes with every release that
 * breaks programs built with an earlier header, before version 1.0 too.
 */
#define AQ_ABI_VERSION 1

/** Encoding of a tensor's weights. */
typedef int32_t aq_format;

/** Whether groups have a bias beside their scale. */
typedef int32_t aq_scheme;

/** How scales are chosen. */
typedef int32_t aq_method;

/** Whether the amplitude that rounding takes from rows is restored. */
typedef int32_t aq_gain;

/** Type of an element; all values are little-endian. */
typedef int32_t aq_dtype;

/**
 * How weights are quantized. Start with AQ_INIT(aq_recipe), then set format and group_size; the
 * rest may stay 0, for the defaults.
 */
typedef struct aq_recipe {
  /** sizeof(aq_recipe). */
  uint32_t struct_size;
  /** AQ_FORMAT_INT2, AQ_FORMAT_INT4 or AQ_FORMAT_INT8. */
  aq_format format;
  /** Weights that share a scale: a multiple of 16 up to 1024, or 0 for a whole row. */
  uint32_t group_size;
  aq_scheme scheme;
  /** Storage of scales and biases: AQ_DTYPE_F16 (the default) or AQ_DTYPE_F32. */
  aq_dtype scale_dtype;
  aq_method method;
  aq_gain gain;
} aq_recipe;

/** Not quantized: the values are kept as they were. */
#define AQ_FORMAT_KEPT 0
#define AQ_FORMAT_INT2 2
#define AQ_FORMAT_INT4 4
#define AQ_FORMAT_INT8 8
#define AQ_SCHEME_DEFAULT 0

/** Without bias: w = scale * (q - z), where z is 1.5, 8 or 128 for 2, 4 or 8 bits. The default. */
#define AQ_SCHEME_SYMMETRIC 1

/** With bias: w = scale * q + bias. */
#define AQ_SCHEME_AFFINE 2
#define AQ_METHOD_DEFAULT 0

/** Scales from the range of each group. */
#define AQ_METHOD_MINMAX 1

/** Scales by least squares over trial scales. The default. */
#define AQ_METHOD_LSQ 2

/**
 * Each column compensates for the rounding of earlier ones, as a calibration's Hessian says how
 * (GPTQ). For runs only.
 */
#define AQ_METHOD_GPTQ 3

/** AQ_GAIN_UNIT for 2 and 4 bits, AQ_GAIN_LSQ for 8. */
#define AQ_GAIN_DEFAULT 0

/** Multiplies each row's scales so that rounding does not change its amplitude. */
#define AQ_GAIN_UNIT 1

/** Leaves scales as the method chose them. */
#define AQ_GAIN_LSQ 2
#define AQ_DTYPE_DEFAULT 0
#define AQ_DTYPE_F32 1
#define AQ_DTYPE_F16 2
#define AQ_DTYPE_BF16 3
#define AQ_DTYPE_F64 4
#define AQ_DTYPE_F8_E4M3 5
#define AQ_DTYPE_F8_E5M2 6
#define AQ_DTYPE_F8_E4M3FNUZ 7
#define AQ_DTYPE_F8_E5M2FNUZ 8
#define AQ_DTYPE_F8_E8M0 9
#define AQ_DTYPE_F6_E2M3 10
#define AQ_DTYPE_F6_E3M2 11
#define AQ_DTYPE_F4 12
#define AQ_DTYPE_C64 13
#define AQ_DTYPE_I64 14
#define AQ_DTYPE_I32 15
#define AQ_DTYPE_I16 16
#define AQ_DTYPE_I8 17
#define AQ_DTYPE_U64 18
#define AQ_DTYPE_U32 19
#define AQ_DTYPE_U16 20
#define AQ_DTYPE_U8 21
#define AQ_DTYPE_BOOL 22

/** Returns the library's version, such as "0.1.0". The string lasts forever. */
AQ_API const char *aq_version(void);

/**
 * Returns the library's AQ_ABI_VERSION. A program that loads the library at run time must compare
 * it with AQ_ABI_VERSION of its header before it calls anything else, and give up if they differ.
 */
AQ_API uint32_t aq_abi_version(void);

/**
 * Returns the name of the instruction set in use: the best of this machine, or a lesser one that
 * the environment variable AQ_ISA asks for. "scalar", on x86-64 also "avx2", "avx512" or
 * "avx512vnni", on AArch64 "neon" or "neon-dotprod". "unknown" if AQ_ISA is set to anything else;
 * calls that need kernels then fail with AQ_ERROR_CONFIG. The string lasts forever.
 */
AQ_API const char *aq_isa_name(void);

/*
 * Matrices: how weights are laid out, and where they lie.
 *
 * A quantized matrix is three planes: packed codes, scales, and biases where the scheme is affine.
 * Each holds one row after another; docs/format.md has the layout. The columns of some matrices
 * were scaled or rotated before quantization. The matrix says so, and every function that takes
 * one accounts for it: decoding undoes it, products apply it to the vectors.
 */

/**
 * A matrix of weights, quantized or kept. aq_model_view and aq_quantize_rows fill one; for planes
 * from elsewhere, start with AQ_INIT(aq_matrix) and set the fields that apply.
 *
 * The matrix owns nothing: its planes must last while it is used. Its size is fixed as long as
 * AQ_ABI_VERSION is, because other structs contain it; new fields take reserved ones.
 */
typedef struct aq_matrix {
  /** sizeof(aq_matrix). */
  uint32_t struct_size;
  /** How weights are encoded; AQ_FORMAT_KEPT for weights that are not quantized. */
  aq_format format;
  /** Weights that share a scale: a multiple of 16 up to 1024, or 0 for a whole row. */
  uint32_t group_size;
  /** Default: symmetric. Ignored when kept. */
  aq_scheme scheme;
  /** Storage of scales and biases: AQ_DTYPE_F16 (the default) or AQ_DTYPE_F32. Ignored when kept. */
  aq_dtype scale_dtype;
  /**
   * Element type of the codes plane when kept. In a view of a quantized tensor, the element type
   * of its source, which no function here reads.
   */
  aq_dtype dtype;
  /** Rows of the matrix. */
  size_t rows;
  /** Weights in a row. */
  size_t cols;
  /**
   * Packed codes: element i of a row is in byte i * bits / 8 of the row, least significant bits
   * first. When kept, the values themselves. A format whose codes hold everything has no other
   * plane.
   */
  const void *codes;
  /** Bytes of the codes plane. */
  size_t codes_len;
  /** Bytes from the start of one row of codes to the next; 0 means that rows are contiguous. */
  size_t codes_stride;
  /** One scale per group, row after row; NULL when kept. */
  const void *scales;
  /** Bytes of the scales plane. */
  size_t scales_len;
  /** Bytes from the start of one row of scales to the next; 0 means that rows are contiguous. */
  size_t scales_stride;
  /** One bias per group, row after row; NULL unless the scheme is affine. */
  const void *biases;
  /** Bytes of the biases plane. */
  size_t biases_len;
  /** Bytes from the start of one row of biases to the next; 0 means that rows are contiguous. */
  size_t biases_stride;
  /** Factor that each column was multiplied by before quantization, as f16; NULL for none. */
  const void *input_scale;
  /** Bytes of input_scale: 2 * cols, or 0. */
  size_t input_scale_len;
  /** Columns that were rotated together after that; 0 for no rotation. */
  size_t rotation_block;
  /** Seed of the rotation's signs, see docs/format.md. */
  uint64_t rotation_seed;
  /** Must be 0. */
  uint64_t reserved[4];
} aq_matrix;

/**
 * Sets `part` to `rows` rows of `matrix`, from `row_start` on. The planes are shared, nothing is
 * copied. `part` may be `matrix` itself. Use it to decode or multiply in pieces, for example one on
 * each thread.
 *
 * Fails with AQ_ERROR_TENSOR if the matrix has no such rows.
 */
AQ_API aq_status aq_matrix_rows(const aq_matrix *matrix,
                                size_t row_start,
                                size_t rows,
                                aq_matrix *part,
                                aq_error *err);

/**
 * Decodes a matrix as f32, f16 or bf16 (the f32 result rounded half to even). `weights` has room
 * for rows * cols values, `weights_len` bytes, and may not overlap the matrix.
 *
 * Weights are decoded to what they were: scaling and rotation of columns are undone. Kept weights
 * of f32, f16 and bf16 are converted; for other kept types call aq_model_dequantize_rows. Planes
 * are decoded as they are: scales that are not finite give weights that are not.
 *
 * Allocates nothing, except for one row where a matrix with scaled or rotated columns becomes f16
 * or bf16. The library for firmware refuses that with AQ_ERROR_ARGUMENT.
 */
AQ_API aq_status aq_dequantize_rows(const aq_matrix *matrix,
                                    aq_dtype dtype,
                                    void *weights,
                                    size_t weights_len,
                                    aq_error *err);

/*
 * Products of matrices with vectors.
 *
 * Vectors are f32 (aq_matvec), or signed bytes that aq_quantize_vectors makes of f32
 * (aq_matvec_int8), also known as dynamic activations. Products start no threads; any number of
 * threads may multiply different rows at once (aq_matrix_rows), each into a y of its own. Where
 * columns of the matrix were scaled or rotated, vectors are transformed accordingly, in memory
 * that is allocated for the call.
 */

#if defined(AQ_STD)
/**
 * Vectors of signed bytes, and what they were made for. The caller sets the pointers and counts of
 * values, scales and sums; aq_quantize_vectors sets the rest.
 */
typedef struct aq_vectors {
  /** sizeof(aq_vectors). */
  uint32_t struct_size;
  /** Format of the matrix, which decides the order of the values. */
  aq_format format;
  /** Group size of the matrix. */
  uint32_t group_size;
  /** Values in a vector. */
  size_t cols;
  /** Number of vectors. */
  size_t batch;
  /** Identifies how vectors were scaled and rotated for the matrix; 0 for not at all. */
  uint64_t transform;
  /** Room for batch * cols values, in an order of the library's own. None of them is -128. */
  int8_t *values;
  /** Number of values. */
  size_t values_count;
  /**
   * Room for batch * groups scales, where groups is ceil(cols / group_size), or 1 for a
   * group_size of 0: x is about scale * value.
   */
  float *scales;
  /** Number of scales. */
  size_t scales_count;
  /** Room for as many sums: the scale times the sum of the group's values. */
  float *sums;
  /** Number of sums. */
  size_t sums_count;
} aq_vectors;
#endif

/**
 * Multiplies a quantized matrix with `batch` vectors: `y[b][r]` is the sum over c of
 * `w[r][c] * x[b][c]`. `x` has batch * cols values, `y` batch * rows. `y` may not overlap an input.
 * Fastest if planes and `x` start at multiples of 64 bytes and rows are contiguous.
 *
 * Each y is within 2^-17 of the sum of |w * x| of the exact one; unlike everything else, products
 * may differ between instruction sets.
 *
 * Fails with AQ_ERROR_TENSOR for a kept matrix. The library for firmware, which cannot allocate,
 * fails with AQ_ERROR_ARGUMENT for scaled or rotated columns: call aq_transform_vectors, and
 * multiply with a copy of the matrix whose input_scale is NULL (and its length 0) and whose
 * rotation_block is 0.
 */
AQ_API aq_status aq_matvec(const aq_matrix *matrix,
                           const float *x,
                           size_t x_count,
                           size_t batch,
                           float *y,
                           size_t y_count,
                           aq_error *err);

/**
 * Transforms `batch` vectors in place: divides them by the matrix's input scale and rotates them,
 * so that planes can be multiplied with them as they are. Vectors do not change if the matrix has
 * neither. Only for products of your own: all functions here do this by themselves.
 */
AQ_API aq_status aq_transform_vectors(const aq_matrix *matrix,
                                      float *x,
                                      size_t x_count,
                                      size_t batch,
                                      aq_error *err);

#if defined(AQ_STD)
/**
 * Quantizes `batch` vectors to signed bytes, for aq_matvec_int8 with this matrix, or with any other
 * of the same cols, format, group_size, input scale and rotation. The planes are not read.
 *
 * In each group of a vector the largest magnitude becomes 127, all others in proportion, rounded
 * half to even. Vectors are first transformed as the matrix requires. No output may overlap another
 * or the input.
 *
 * Fails with AQ_ERROR_ARGUMENT for a NaN or infinity; the memory then holds nothing of use.
 */
AQ_API aq_status aq_quantize_vectors(const aq_matrix *matrix,
                                     const float *x,
                                     size_t x_count,
                                     size_t batch,
                                     aq_vectors *vectors,
                                     aq_error *err);
#endif

#if defined(AQ_STD)
/**
 * Multiplies a quantized matrix with vectors from aq_quantize_vectors, as aq_matvec does with f32.
 * Codes and values are multiplied as integers, by the CPU's own instructions for that where it has
 * them (AVX-512 VNNI, NEON's dot products).
 *
 * These products are exact, and each y is within 2^-17 of the sum over groups of largest |w| times
 * sum of |x|, for w and x as quantized, of the exact one; the largest |w| is the largest that a
 * code of the group could represent. What x lost when it was quantized, up to half a scale for each
 * value, comes on top.
 *
 * Fails with AQ_ERROR_ARGUMENT for vectors that were made for another kind of matrix.
 */
AQ_API aq_status aq_matvec_int8(const aq_matrix *matrix,
                                const aq_vectors *vectors,
                                float *y,
                                size_t y_count,
                                aq_error *err);
#endif

/*
 * Quantizing the caller's rows, and comparing values.
 *
 * Any number of threads may work on different rows at once.
 */

/**
 * Memory for the planes of a matrix that is about to be quantized. aq_plane_sizes sets the
 * lengths; the caller sets the pointers.
 */
typedef struct aq_planes {
  /** sizeof(aq_planes). */
  uint32_t struct_size;
  /** Room for the codes. */
  void *codes;
  /** Bytes of the codes. */
  size_t codes_len;
  /** Room for the scales. */
  void *scales;
  /** Bytes of the scales. */
  size_t scales_len;
  /** Room for the biases; NULL unless the scheme is affine. */
  void *biases;
  /** Bytes of the biases; 0 unless the scheme is affine. */
  size_t biases_len;
} aq_planes;

#if defined(AQ_STD)
/** Quality of quantized rows, measured on the weights as they decode. */
typedef struct aq_quality {
  /** sizeof(aq_quality). */
  uint32_t struct_size;
  /** Cosine of the angle between original and decoded weights. */
  double cosine;
  /** Signal to quantization noise ratio in dB; infinite without any error. */
  double sqnr_db;
  /** Bits per weight, scales and biases counted; NaN without weights. */
  double bits_per_weight;
} aq_quality;
#endif

/**
 * Sets the lengths in `planes` to what `rows` rows of `cols` weights need, and leaves its pointers
 * as they are.
 */
AQ_API aq_status aq_plane_sizes(const aq_recipe *recipe,
                                size_t rows,
                                size_t cols,
                                aq_planes *planes,
                                aq_error *err);

#if defined(AQ_STD)
/**
 * Quantizes `rows` rows of `cols` weights (f32, f16 or bf16, row after row) into `planes`, whose
 * lengths must be those of aq_plane_sizes.
 *
 * `importance` weighs the input channels in the choice of scales: `cols` numbers >= 0, or NULL.
 * `matrix` receives the result, for products and decoding; it points to the planes. `quality`
 * receives what was measured. Both may be NULL; without `quality` nothing is measured, which is
 * faster. No output may overlap another or an input.
 *
 * Fails with AQ_ERROR_TENSOR, naming the row, for a weight that is NaN or infinite, and if the
 * scale dtype cannot hold a scale: then choose AQ_DTYPE_F32. The planes then hold nothing of use.
 */
AQ_API aq_status aq_quantize_rows(const aq_recipe *recipe,
                                  const void *weights,
                                  size_t weights_len,
                                  aq_dtype dtype,
                                  size_t rows,
                                  size_t cols,
                                  const float *importance,
                                  const aq_planes *planes,
                                  aq_matrix *matrix,
                                  aq_quality *quality,
                                  aq_error *err);
#endif

#if defined(AQ_STD)
/**
 * Compares `b` with the original `a`: two arrays of the same number of values, each f32, f16 or
 * bf16, their lengths in bytes. Both outputs are required.
 *
 * `cosine` is that of the angle between them: 1 if both are all 0, and 0 if one is. `sqnr_db` is
 * the signal to quantization noise ratio in dB: infinite without any difference, and minus
 * infinite if only `a` is all 0.
 *
 * Fails with AQ_ERROR_ARGUMENT for a NaN or infinity.
 */
AQ_API aq_status aq_compare(const void *a,
                            size_t a_len,
                            aq_dtype a_dtype,
                            const void *b,
                            size_t b_len,
                            aq_dtype b_dtype,
                            double *cosine,
                            double *sqnr_db,
                            aq_error *err);
#endif

/*
 * Activations to integers, for products that the caller computes: the input of a layer, row by row
 * (token by token), in plain order. Nothing here allocates or starts threads, and any number of
 * threads may call it at once.
 */

#if defined(AQ_STD)
/**
 * How activations are quantized: dynamically, by their own magnitudes, if scale is 0; otherwise by
 * a static scale and zero point. Start with AQ_INIT(aq_activation_options).
 */
typedef struct aq_activation_options {
  /** sizeof(aq_activation_options). */
  uint32_t struct_size;
  /** Bits of a value: 4, or 8 (the default). */
  uint32_t bits;
  /**
   * Dynamic only: values of a row that share a scale, a multiple of 16 up to 1024, or 0 for a
   * whole row. The last group of a row may be shorter.
   */
  uint32_t group_size;
  /** Static scale, a normal number above 0; 0 for dynamic scales. */
  float scale;
  /** Zero point of a static scale: any finite number. */
  float zero_point;
  /** Divisor of each column, applied first: normal numbers above 0, or NULL for none. */
  const float *input_scale;
  /** Number of divisors: `cols`, or 0. */
  size_t input_scale_count;
} aq_activation_options;
#endif

#if defined(AQ_STD)
/**
 * Quantizes `rows` rows of `cols` activations (f32, f16 or bf16), `x_len` bytes, to `rows * cols`
 * values of one byte each, in the same order. With `options` NULL: 8 bits, one scale per row.
 *
 * Dynamic: with `a` the largest magnitude of a group and `top` 127, or 7 for 4 bits, values are
 * int8, `round(x * (top / a))`, and represent `value * (a / top)`. There are rows * groups
 * `scales`, `a / top` each, where groups is ceil(cols / group_size), or 1 for a group_size of 0. A
 * group without magnitudes above 1e-30 gets zeros, and the scale 0.
 *
 * Static: values are uint8, `clamp(round(x * (1 / scale) + zero_point), 0, 2^bits - 1)`, and
 * represent `(value - zero_point) * scale`. There are no `scales`: pass NULL and 0.
 *
 * All arithmetic is f32 with each operation rounded, and round is half to even, so that results
 * are the same on every machine. No output may overlap the other or an input.
 *
 * Fails with AQ_ERROR_TENSOR, naming row and column, for a value that is NaN or infinite, or, when
 * dynamic, becomes so when divided by `input_scale`. The outputs then hold nothing of use.
 */
AQ_API aq_status aq_quantize_activations(const void *x,
                                         size_t x_len,
                                         aq_dtype dtype,
                                         size_t rows,
                                         size_t cols,
                                         const aq_activation_options *options,
                                         void *values,
                                         size_t values_len,
                                         float *scales,
                                         size_t scales_count,
                                         aq_error *err);
#endif

#ifdef AQ_STD

/*
 * aq_config: the settings of a run.
 *
 * Settings have the keys and values of docs/configuration.md, as text: "bit_width" "4",
 * "group_size" "128", "rules" "*.v_proj.weight=bits:8,group:64;lm_head.*=keep" and so on. Later
 * ones win; rules accumulate.
 */

/** Settings of a run. */
typedef struct aq_config aq_config;

/**
 * Makes a configuration with the defaults of a profile: "edge", "local" or "cloud", or NULL for
 * "local". No environment variable is read.
 */
AQ_API aq_status aq_config_new(const char *profile, aq_config **config, aq_error *err);

/** Copies a configuration. */
AQ_API aq_status aq_config_clone(const aq_config *config,
                                 aq_config **copy,
                                 aq_error *err);

/** Sets `key` to `value`. "rules" adds rules, separated by semicolons. */
AQ_API aq_status aq_config_set(aq_config *config,
                               const char *key,
                               const char *value,
                               aq_error *err);

/** Adds one rule, such as "lm_head.*=keep" or "*.v_proj.weight=bits:8,group:64". */
AQ_API aq_status aq_config_add_rule(aq_config *config, const char *rule, aq_error *err);

/** Gets the value in force for `key`, as aq_config_set takes it. The text belongs to the config. */
AQ_API aq_status aq_config_get(const aq_config *config,
                               const char *key,
                               const char **value,
                               aq_error *err);

/** Applies a YAML document: a mapping of keys to values. */
AQ_API aq_status aq_config_merge_yaml(aq_config *config, const char *yaml, aq_error *err);

/** Applies a YAML file. */
AQ_API aq_status aq_config_merge_yaml_file(aq_config *config,
                                           const char *path,
                                           aq_error *err);

/**
 * Applies the AQ_ environment variables (AQ_BIT_WIDTH=2). Apart from AQ_ISA, the library reads
 * none of them otherwise.
 */
AQ_API aq_status aq_config_merge_env(aq_config *config, aq_error *err);

/**
 * Writes all settings in force as YAML, which aq_config_merge_yaml reads back. The text belongs to
 * the config.
 */
AQ_API aq_status aq_config_to_yaml(const aq_config *config,
                                   const char **yaml,
                                   aq_error *err);

AQ_API void aq_config_free(aq_config *config);

/*
 * aq_calibration: activation statistics of a model's layers, by timestep.
 *
 * A calibration observes the inputs of each layer as the caller's own runtime computes them, and
 * keeps only sums: per layer and bin of timesteps the range and the sum of squares of each input
 * channel and a histogram of all values, and per group of bins the Hessian, sum of x x^T, that
 * AQ_METHOD_GPTQ needs. Calibrations of several machines add up.
 *
 * Layers are named after their weights, with or without ".weight" at the end. Everything except
 * freeing may be done by several threads at once; those that observe one layer take turns. The
 * order in which rows come affects sums only by rounding, and counts, ranges and histograms not at
 * all.
 */

/** Activation statistics of a model's layers, by timestep. */
typedef struct aq_calibration aq_calibration;

/** How a calibration divides time, and what it keeps. Start with AQ_INIT(aq_calibration_options). */
typedef struct aq_calibration_options {
  /** sizeof(aq_calibration_options). */
  uint32_t struct_size;
  /**
   * Timesteps of the model, which run from 0 to one less: up to 2^20, or 0 for 1000. If the mask
   * ratio of a text model serves as time: ratio times this.
   */
  uint32_t timesteps;
  /**
   * Bins of timesteps with ranges, squares and a histogram each: up to 4096 and not more than
   * there are timesteps, or 0 for 50.
   */
  uint32_t bins;
  /** Not 0: keeps no Hessians. */
  uint32_t no_hessian;
  /**
   * Groups of timesteps with a Hessian each; their number divides that of the bins; 0 for 10.
   * The Hessian of a layer with n channels takes 4 n (n + 1) bytes.
   */
  uint32_t hessian_groups;
  /** Bytes of Hessians in memory; more go to a temporary file. 0 for no limit. */
  uint64_t memory_limit;
  /** Folder of that file; NULL for the system's folder for temporary files. */
  const char *spill_folder;
} aq_calibration_options;

/** Description of an observed layer. */
typedef struct aq_layer_info {
  /** sizeof(aq_layer_info). */
  uint32_t struct_size;
  /** Name of the layer, without ".weight". Belongs to the calibration. */
  const char *name;
  /** Bytes of the name without its final NUL. */
  size_t name_len;
  /** Number of input channels. */
  size_t cols;
  /** Number of rows observed, at all timesteps. */
  uint64_t rows;
} aq_layer_info;

/** Makes an empty calibration. `options` may be NULL for the defaults. */
AQ_API aq_status aq_calibration_new(const aq_calibration_options *options,
                                    aq_calibration **calibration,
                                    aq_error *err);

/**
 * Reads a file that aq_calibration_save wrote, to use it or to continue observing. Hessians beyond
 * `memory_limit` bytes (0: no limit) go to a temporary file in the system's folder for such files.
 */
AQ_API aq_status aq_calibration_load(const char *path,
                                     uint64_t memory_limit,
                                     aq_calibration **calibration,
                                     aq_error *err);

/** Writes the calibration to the Parquet file `path`, which appears whole or not at all. */
AQ_API aq_status aq_calibration_save(const aq_calibration *calibration,
                                     const char *path,
                                     aq_error *err);

/**
 * Adds the observations of another calibration of the same model, `from`, which does not change.
 * Both must divide time alike, both or neither keep Hessians, and have the same schedule, unless
 * one has none. Counts, ranges and histograms are as if one calibration had observed everything;
 * sums are the same up to rounding. After an error nothing is added, unless a temporary file
 * failed (AQ_ERROR_IO).
 */
AQ_API aq_status aq_calibration_merge(const aq_calibration *into,
                                      const aq_calibration *from,
                                      aq_error *err);

/**
 * Sets how much of the signal is left at each timestep: `alphas_count` numbers from 0 to 1, one
 * per timestep, the cumulative products of 1 - beta. Needed only to weight timesteps by their
 * noise.
 */
AQ_API aq_status aq_calibration_set_schedule(const aq_calibration *calibration,
                                             const double *alphas,
                                             size_t alphas_count,
                                             aq_error *err);

/**
 * Observes rows of a layer's input at a timestep: `rows` vectors of `cols` input channels, one
 * after another, in the `x_len` bytes at `x`, of AQ_DTYPE_F32, _F16 or _BF16. A row is a token, a
 * pixel or a sample. The input of a convolution is unfolded first: its channels are the inputs of
 * one output (channels x kernel height x kernel width), in the order of the weight's. `x` is not
 * used after the call.
 *
 * Fails with AQ_ERROR_CONFIG, and observes nothing, if the timestep is out of range, the layer had
 * another `cols` before, or a value is NaN, infinite or beyond 10^18 (the message says where);
 * with AQ_ERROR_IO if a temporary file cannot be written.
 */
AQ_API aq_status aq_calibration_observe(const aq_calibration *calibration,
                                        const char *layer,
                                        uint32_t timestep,
                                        const void *x,
                                        size_t x_len,
                                        aq_dtype dtype,
                                        size_t rows,
                                        size_t cols,
                                        aq_error *err);

/** Returns the number of observed layers; 0 for NULL. */
AQ_API size_t aq_calibration_count(const aq_calibration *calibration);

/**
 * Describes layer `index`. Layers are in the order of their names' bytes, so a layer that is
 * observed for the first time moves those after it.
 */
AQ_API aq_status aq_calibration_layer(const aq_calibration *calibration,
                                      size_t index,
                                      aq_layer_info *info,
                                      aq_error *err);

/**
 * Sets the calibration that runs with this config use; NULL for none. The calibration may be freed
 * before the config, which keeps what it needs, as do its copies. It is not part of the config's
 * YAML.
 */
AQ_API aq_status aq_config_set_calibration(aq_config *config,
                                           const aq_calibration *calibration,
                                           aq_error *err);

AQ_API void aq_calibration_free(aq_calibration *calibration);

/* The Arrow C data and stream interfaces, as their specification has them. */

#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

#define ARROW_FLAG_DICTIONARY_ORDERED 1
#define ARROW_FLAG_NULLABLE 2
#define ARROW_FLAG_MAP_KEYS_SORTED 4

struct ArrowSchema {
  const char *format;
  const char *name;
  const char *metadata;
  int64_t flags;
  int64_t n_children;
  struct ArrowSchema **children;
  struct ArrowSchema *dictionary;
  void (*release)(struct ArrowSchema *);
  void *private_data;
};

struct ArrowArray {
  int64_t length;
  int64_t null_count;
  int64_t offset;
  int64_t n_buffers;
  int64_t n_children;
  const void **buffers;
  struct ArrowArray **children;
  struct ArrowArray *dictionary;
  void (*release)(struct ArrowArray *);
  void *private_data;
};

#endif

#ifndef ARROW_C_STREAM_INTERFACE
#define ARROW_C_STREAM_INTERFACE

struct ArrowArrayStream {
  int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *out);
  int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *out);
  const char *(*get_last_error)(struct ArrowArrayStream *);
  void (*release)(struct ArrowArrayStream *);
  void *private_data;
};

#endif

/*
 * aq_source: tensors to quantize, from files or memory.
 */

/** Tensors to quantize. */
typedef struct aq_source aq_source;

/** What to open. Start with AQ_INIT(aq_open_options). */
typedef struct aq_open_options {
  /** sizeof(aq_open_options). */
  uint32_t struct_size;
  /** Names of pipeline components to leave out; they may be missing. */
  const char *const *without;
  /** Number of names. */
  size_t without_count;
} aq_open_options;

/** Description of a tensor. Pointers belong to the handle that described it. */
typedef struct aq_tensor_info {
  /** sizeof(aq_tensor_info). */
  uint32_t struct_size;
  /** Element type in the source. */
  aq_dtype dtype;
  /** Name in the model. */
  const char *name;
  /** Bytes of the name without its final NUL; a name may contain a NUL itself. */
  size_t name_len;
  /** Dimensions, outermost first. */
  const size_t *dims;
  /** Number of dimensions; 0 for a scalar. */
  size_t dims_count;
  /** Rows of the matrix that it is quantized as: all dimensions but the first fold into columns. */
  size_t rows;
  /** Columns of that matrix. */
  size_t cols;
  /** Bytes of its values in the source. */
  size_t bytes;
  /** Number of tiles that store it, each of some whole rows; 0 for a tensor of a source. */
  size_t tiles;
} aq_tensor_info;

/**
 * Opens a model to quantize. Reads headers only. f8 weights with scales are bf16 tensors here,
 * multiplied by them; the scales are not tensors. `options` may be NULL.
 *
 * - A safetensors file, the `*.safetensors.index.json` of its shards, or a folder with one of
 *   these.
 * - The folder of a diffusers pipeline, with its `model_index.json`: all its components, except
 *   those in `without`. Names begin with that of the component and a dot
 *   (`transformer.blocks.0.attn.qkv.weight`). Leaving out an unknown component, or a component of
 *   anything but a pipeline, is an error.
 * - A GGUF file, any part of a split one (`NAME-00001-of-00003.gguf`), or a folder with one of
 *   these. Tensors are f32, f16, bf16, or packed as Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K,
 *   IQ4_NL or IQ4_XS; packed ones are f32 here.
 * - A Parquet file: a table with one tensor per row, in columns as aq_source_from_arrow takes them
 *   (`data` binary), or a file of this library whose tensors were all kept.
 * - A JSON file that lists tensors without their weights, for plans: `{"dtype": "bf16",
 *   "tensors": {"w": [2, 3], "ids": {"shape": [4], "dtype": "i64"}}}`.
 */
AQ_API aq_status aq_source_open(const char *path,
                                const aq_open_options *options,
                                aq_source **source,
                                aq_error *err);

/** Makes an empty source, for aq_source_add_tensor. */
AQ_API aq_status aq_source_new(aq_source **source, aq_error *err);

/**
 * Adds a tensor in the caller's memory. Its values are not copied: they must not change until the
 * source is freed. Any dtype is accepted; tensors of other types than f64, f32, f16, bf16 and f8
 * (e4m3, e5m2) are kept. An f8 weight whose scale is also added, such as `a.weight_scale` beside
 * `a.weight`, becomes one bf16 tensor, as when it is read from a file. Only for sources from
 * aq_source_new or aq_source_from_arrow.
 */
AQ_API aq_status aq_source_add_tensor(aq_source *source,
                                      const char *name,
                                      aq_dtype dtype,
                                      const size_t *dims,
                                      size_t dims_count,
                                      const void *data,
                                      size_t data_len,
                                      aq_error *err);

/**
 * Makes a source of the tensors in an Arrow table, without copying values. The table has one
 * tensor per row: `name` a string, `shape` a list of int64, and `data` either binary, with its
 * dtype ("f32", "bf16", ...) in a column `dtype`, or a list of float or half float.
 *
 * The library takes the stream: it must not be used or released any more, whether the call
 * succeeds or not, and its `release` is NULL afterwards. Its arrays are released when the source
 * is freed.
 */
AQ_API aq_status aq_source_from_arrow(struct ArrowArrayStream *stream,
                                      aq_source **source,
                                      aq_error *err);

/** Returns the number of tensors; 0 for NULL. */
AQ_API size_t aq_source_count(const aq_source *source);

/** Describes tensor `index`. */
AQ_API aq_status aq_source_tensor(const aq_source *source,
                                  size_t index,
                                  aq_tensor_info *info,
                                  aq_error *err);

AQ_API void aq_source_free(aq_source *source);

/*
 * Options of long calls: threads, progress, log.
 */

/** Importance of a log message. */
typedef int32_t aq_log_level;

/** Progress of a run. */
typedef struct aq_progress {
  /** sizeof(aq_progress) in the library. */
  uint32_t struct_size;
  /** Bytes processed. */
  uint64_t done;
  /** Bytes in total. */
  uint64_t total;
} aq_progress;

/**
 * Receives the progress of a run, at least about 20 times a second, even if nothing changed.
 * Returning false cancels.
 */
typedef bool (*aq_progress_fn)(void *user_data, const aq_progress *progress);

/**
 * Receives one-line notices and warnings, such as a rule that matches no tensor, or a tensor that
 * got another format than planned. Returning false cancels.
 */
typedef bool (*aq_log_fn)(void *user_data, aq_log_level level, const char *message);

/** How a run works; nothing here changes what tensors become. Start with AQ_INIT(aq_run_options). */
typedef struct aq_run_options {
  /** sizeof(aq_run_options). */
  uint32_t struct_size;
  /**
   * Number of working threads; 1 starts none. 0 means what the config says, if there is one,
   * else as many as the machine has.
   */
  uint32_t threads;
  aq_progress_fn progress;
  aq_log_fn log;
  /** Passed to progress and log. */
  void *user_data;
  /**
   * Not 0: requires that the output is a folder, where runs continue with existing parts by
   * default; a single file is refused.
   */
  uint32_t resume;
  /** For a folder: does share `part` (from 1) of `parts`, for aq_merge. 0 of 0 means everything. */
  uint32_t part;
  uint32_t parts;
  /** For a folder: bytes of planes after which a part ends; 0 means 128 MiB. */
  uint64_t part_bytes;
  /**
   * Not 0: for a folder, starts anew and removes the parts of an earlier run, even one of
   * another model or other settings. No other run may be writing to the folder.
   */
  uint32_t restart;
} aq_run_options;

/** Information. */
#define AQ_LOG_INFO 1

/** A warning: probably not what was intended. */
#define AQ_LOG_WARNING 2

/**
 * A notice to whoever started the run; nothing is wrong. For example that it continues with
 * existing parts.
 */
#define AQ_LOG_NOTICE 3

/*
 * aq_plan: what each tensor will get, before any work.
 */

/** What each tensor of a source will get. */
typedef struct aq_plan aq_plan;

/** What one tensor will get. Strings belong to the plan. */
typedef struct aq_tensor_plan {
  /** sizeof(aq_tensor_plan). */
  uint32_t struct_size;
  /** Format; AQ_FORMAT_KEPT for a tensor that is kept, with 0 in the next five fields. */
  aq_format format;
  /** Weights that share a scale; 0 for a whole row. */
  uint32_t group_size;
  aq_scheme scheme;
  /**
   * Storage of scales: AQ_DTYPE_F16 or AQ_DTYPE_F32, or AQ_DTYPE_DEFAULT for f16, and f32 in
   * tiles that need it.
   */
  aq_dtype scale_dtype;
  aq_method method;
  aq_gain gain;
  const char *name;
  /** Bytes of the name without its final NUL. */
  size_t name_len;
  /** Reason for this format, in a few words. */
  const char *reason;
  /** Bytes of its values in the source. */
  size_t source_bytes;
  /** Predicted bytes of its planes. */
  size_t bytes;
  /** Predicted bits per weight; NaN without weights. */
  double bits_per_weight;
  /**
   * Required cosine: a tensor below it gets more bits. Of the outputs if a calibration has this
   * layer, else of the weights. NaN for none.
   */
  double min_cosine;
} aq_tensor_plan;

/**
 * Plans for the tensors of a source. `config` (NULL for the defaults) and `options` may be NULL. The
 * plan refers to neither afterwards.
 *
 * With a budget ("max_size", "avg_bits", "mixed_precision"), first measures what tensors lose by
 * each format, on a sample of their rows, with the threads, progress (in bytes of the sample) and
 * log of `options`. Fails with AQ_ERROR_CONFIG, with the arithmetic, for a budget that nothing fits.
 */
AQ_API aq_status aq_plan_new(const aq_source *source,
                             const aq_config *config,
                             const aq_run_options *options,
                             aq_plan **plan,
                             aq_error *err);

/** Returns the number of tensors; 0 for NULL. */
AQ_API size_t aq_plan_count(const aq_plan *plan);

/** Gets what tensor `index` will get; tensors are in the order of the source. */
AQ_API aq_status aq_plan_tensor(const aq_plan *plan,
                                size_t index,
                                aq_tensor_plan *entry,
                                aq_error *err);

/**
 * Predicts the bytes of the file that a run will write: planes exactly, everything else to a few
 * hundred bytes per tensor. Compression, scales that turn out to need f32, and tensors that get
 * more bits to reach their cosine change the size. Fails with AQ_ERROR_PLAN for another source.
 */
AQ_API aq_status aq_plan_file_bytes(const aq_plan *plan,
                                    const aq_source *source,
                                    uint64_t *bytes,
                                    aq_error *err);

/**
 * Changes what one tensor will get: `settings` are "keep", or like "bits:8,group:64" with any of
 * bits, group, scheme, method, gain, scale_dtype and min_cosine.
 */
AQ_API aq_status aq_plan_set(aq_plan *plan,
                             const char *tensor,
                             const char *settings,
                             aq_error *err);

/**
 * Writes the plan as JSON, as `arrowquant plan --json` does, with "modality", "evidence" (what the
 * modality follows from), "warnings" and all tensors. The text belongs to the plan.
 */
AQ_API aq_status aq_plan_to_json(const aq_plan *plan, const char **json, aq_error *err);

/** Reads a plan from JSON, edited or not. */
AQ_API aq_status aq_plan_from_json(const char *json, aq_plan **plan, aq_error *err);

AQ_API void aq_plan_free(aq_plan *plan);

/*
 * aq_report: the measurements of a run.
 */

/** Measurements of a run, on the weights as they decode from the file. */
typedef struct aq_report aq_report;

/** Measurements of one tensor. Strings belong to the report. */
typedef struct aq_tensor_report {
  /** sizeof(aq_tensor_report). */
  uint32_t struct_size;
  /** AQ_FORMAT_KEPT for a tensor that was kept. */
  aq_format format;
  const char *name;
  /** Bytes of the name without its final NUL. */
  size_t name_len;
  /** Why it has this format, in a few words. */
  const char *reason;
  /** Bytes of its planes. */
  size_t bytes;
  /** Bits per weight, scales and biases counted; NaN without weights. */
  double bits_per_weight;
  /** Cosine of the angle to the original; NaN when kept, or when all weights are 0. */
  double cosine;
  /** Signal to quantization noise in dB; infinite without error, NaN if the cosine is. */
  double sqnr_db;
  /** Number of tiles whose scales did not fit f16 and are f32. */
  size_t f32_scale_tiles;
  /**
   * Relative squared error of the layer's output on the calibration's inputs, |X W - X Q|^2 / |X
   * W|^2, timesteps weighted as in quantization; NaN without a calibration of this layer. The
   * report's JSON has it by time, too.
   */
  double output_error;
  /** Cosine of the angle between the outputs; NaN if output_error is. */
  double output_cosine;
  /**
   * Required cosine: of the outputs if a calibration has this layer, else of the weights. NaN
   * for none.
   */
  double min_cosine;
  /**
   * Number of attempts below the required cosine, each with fewer bits than the next. The
   * report's JSON has the measurements of each, as "ladder".
   */
  size_t ladder_steps;
  /** Not 0: still below the required cosine, because the budget left no room for more bits. */
  uint32_t below_min_cosine;
} aq_tensor_report;

/** Figures over all quantized tensors of a run. */
typedef struct aq_report_total {
  /** sizeof(aq_report_total). */
  uint32_t struct_size;
  /** Number of working threads. */
  uint32_t threads;
  /** Number of quantized tensors. */
  size_t quantized;
  /** Number of kept tensors. */
  size_t kept;
  /** Bytes of all tensors in the source. */
  uint64_t source_bytes;
  /** Bytes of the file. */
  uint64_t output_bytes;
  /** Quantized weights. */
  uint64_t weights;
  /** Bytes of the planes of quantized tensors. */
  uint64_t bytes;
  /** Bits per quantized weight, scales and biases counted; NaN without any. */
  double bits_per_weight;
  /** Cosine over all quantized tensors; NaN without any. */
  double cosine;
  /**
   * Signal to quantization noise over all quantized tensors, in dB; infinite without error, NaN
   * without any.
   */
  double sqnr_db;
  /** Wall time in seconds. */
  double seconds;
} aq_report_total;

/** Returns the number of tensors; 0 for NULL. */
AQ_API size_t aq_report_count(const aq_report *report);

/** Gets the measurements of tensor `index`; tensors are in the order of the plan. */
AQ_API aq_status aq_report_tensor(const aq_report *report,
                                  size_t index,
                                  aq_tensor_report *entry,
                                  aq_error *err);

/** Gets the measurements over all tensors. */
AQ_API aq_status aq_report_totals(const aq_report *report,
                                  aq_report_total *total,
                                  aq_error *err);

/**
 * Writes the report as JSON, as `arrowquant quantize --report` does. The text belongs to the
 * report.
 */
AQ_API aq_status aq_report_to_json(const aq_report *report,
                                   const char **json,
                                   aq_error *err);

/**
 * Writes the report as a self-contained HTML page, as `arrowquant quantize --report out.html`
 * does. The text belongs to the report.
 */
AQ_API aq_status aq_report_to_html(const aq_report *report,
                                   const char **html,
                                   aq_error *err);

AQ_API void aq_report_free(aq_report *report);

/*
 * Runs: from a source to a file, a folder or the caller's memory.
 */

/**
 * Quantizes `input`, anything that aq_source_open takes, into `output`: opens, plans and runs in
 * one call. `config`, `options` and `report` may be NULL.
 *
 * An output that ends in ".parquet" is one file, which appears whole at its path, or not at all;
 * its bytes depend on input and settings alone. Any other output is a folder of parts with a
 * manifest.json: each part appears whole, and after an interruption the same run continues with
 * the existing parts. A folder belongs to one source and one set of settings; another run into it
 * is refused, unless `restart` is set.
 *
 * With a budget ("max_size", "avg_bits", "mixed_precision") progress covers the measuring first,
 * and then the run.
 */
AQ_API aq_status aq_quantize_file(const char *input,
                                  const char *output,
                                  const aq_config *config,
                                  const aq_run_options *options,
                                  aq_report **report,
                                  aq_error *err);

/**
 * Runs a plan: quantizes its source into the file or folder `output`, as aq_quantize_file does.
 * `options` and `report` may be NULL.
 */
AQ_API aq_status aq_plan_run(const aq_plan *plan,
                             const aq_source *source,
                             const char *output,
                             const aq_run_options *options,
                             aq_report **report,
                             aq_error *err);

/** Gets an upper bound of the file's bytes: enough memory for aq_plan_run_into. */
AQ_API aq_status aq_plan_size_bound(const aq_plan *plan,
                                    const aq_source *source,
                                    size_t *size,
                                    aq_error *err);

/**
 * Runs a plan into the caller's memory: writes the same bytes as to a file, `written` of them.
 * Memory that is too small is an AQ_ERROR_IO; after any failure it holds nothing of use. It must
 * not overlap the tensors of the source. aq_model_open_memory opens the result without copying it.
 */
AQ_API aq_status aq_plan_run_into(const aq_plan *plan,
                                  const aq_source *source,
                                  const aq_run_options *options,
                                  void *output,
                                  size_t output_len,
                                  size_t *written,
                                  aq_report **report,
                                  aq_error *err);

/**
 * Merges a folder of parts that several runs with `part` made into one model: checks that all
 * parts exist and belong together, and writes the manifest.
 */
AQ_API aq_status aq_merge(const char *folder, aq_error *err);

/*
 * aq_analysis: what tensors lose by each format.
 */

/** Measured losses of tensors by each format. */
typedef struct aq_analysis aq_analysis;

/**
 * Measures what each tensor that can be quantized loses by the formats that `config` lets a budget
 * choose from ("candidates"), and by its own, on a sample of its rows. With the calibration of
 * `config`, measures the loss of the layer's outputs. `config` (NULL for the defaults) and
 * `options` (threads, progress in bytes of the sample, and log) may be NULL.
 */
AQ_API aq_status aq_analyze(const aq_source *source,
                            const aq_config *config,
                            const aq_run_options *options,
                            aq_analysis **analysis,
                            aq_error *err);

/**
 * Writes the analysis as JSON, as `arrowquant analyze --json` does: "tensors" with "name",
 * "sensitive" (why, or null) and "formats", each with "format", "group_size", "scheme", "bytes",
 * "bits_per_weight", "cosine" and "error", which is 1 - cosine^2. The text belongs to the
 * analysis.
 */
AQ_API aq_status aq_analysis_to_json(const aq_analysis *analysis,
                                     const char **json,
                                     aq_error *err);

AQ_API void aq_analysis_free(aq_analysis *analysis);

/*
 * aq_evolution: a search for the best plan.
 *
 * A budget ("max_size", "avg_bits") minimizes the sum of the errors of tensors. What a model is
 * worth need not be such a sum: a search tries whole plans and scores each with a function of the
 * caller's.
 */

/** Stands for 0 in fields whose 0 means a default. */
#define AQ_NONE UINT32_MAX

/** The history of a search. */
typedef struct aq_evolution aq_evolution;

/**
 * Scores a candidate: higher is better, any finite number. Score a useless candidate with a very
 * low number, such as -1e300. Minus infinity ends the search with the best so far; NaN and
 * infinity are errors.
 *
 * The candidate is valid until the function returns, and belongs to the search. It can be read,
 * run (aq_plan_run, aq_plan_run_into) and written down, on any thread.
 */
typedef double (*aq_fitness_fn)(void *user_data, const aq_plan *candidate);

/** State of the search after a generation. */
typedef struct aq_generation {
  /** sizeof(aq_generation) in the library. */
  uint32_t struct_size;
  /** Number of the generation; 0 is the start. */
  uint32_t generation;
  /** Candidates scored so far; a candidate that comes up again is not scored again. */
  uint64_t evaluations;
  /** The best fitness so far. */
  double best;
  /** Mean fitness of the parents of the next generation: the best fifth so far. */
  double mean;
  /** Bytes of planes of the best candidate, over the tensors that the search decides on. */
  uint64_t bytes;
} aq_generation;

/**
 * Called after each generation, on the thread that made the call. Returning false ends the search
 * with the best so far.
 */
typedef bool (*aq_generation_fn)(void *user_data, const aq_generation *generation);

/** How a search works. Start with AQ_INIT(aq_evolve_options). */
typedef struct aq_evolve_options {
  /** sizeof(aq_evolve_options). */
  uint32_t struct_size;
  /** Candidates in each generation, at least 2; 0 for 50. */
  uint32_t population;
  /** Generations after the first; 0 for 10, and AQ_NONE for none. */
  uint32_t generations;
  /**
   * Not 0: `fitness` may be called by several threads at once, as many as the run's options say.
   * 0: it is called only on the thread that made the call.
   */
  uint32_t parallel;
  /** Not 0: continues from the checkpoint, if it exists. */
  uint32_t resume;
  /** File that the search is saved to after each generation; NULL for none. */
  const char *checkpoint;
  /**
   * Scores candidates. NULL: minus the sum of the relative errors of tensors, for which a budget
   * alone finds the best plan.
   */
  aq_fitness_fn fitness;
  aq_generation_fn generation;
  /** Passed to fitness and generation. */
  void *user_data;
} aq_evolve_options;

/**
 * Searches for the plan with the highest fitness, among those that need no more bytes than the
 * budget of `config`, or than its own plan if it sets none. The first generation has the budget's
 * plan and the plans that treat all tensors alike. Candidates use what they may: tensors get more
 * bits as long as these fit. With the same "seed", and a fitness that depends on the plan alone,
 * the search is the same on any number of threads.
 *
 * First measures what tensors lose by each format, as aq_plan_new does; `options` are for that,
 * and its threads also count for a parallel fitness. `config`, `evolve`, `options` and `evolution`
 * may be NULL.
 *
 * Fails with AQ_ERROR_CANCELLED if it is ended before anything is found.
 */
AQ_API aq_status aq_evolve(const aq_source *source,
                           const aq_config *config,
                           const aq_evolve_options *evolve,
                           const aq_run_options *options,
                           aq_plan **plan,
                           aq_evolution **evolution,
                           aq_error *err);

/**
 * Writes the history as JSON, as `arrowquant evolve --json` does: "fitness" of the plan, "start"
 * (that of the budget's plan; null if it was not scored), "generations" (the history), "stopped"
 * (whether it was ended early), "seed", "limit_bytes" and "additive". The text belongs to the
 * evolution.
 */
AQ_API aq_status aq_evolution_to_json(const aq_evolution *evolution,
                                      const char **json,
                                      aq_error *err);

AQ_API void aq_evolution_free(aq_evolution *evolution);

/*
 * aq_fold_report: smoothing folded into the weights of preceding layers.
 *
 * Smoothing divides the inputs of a layer by a scale per channel and multiplies its weights by it,
 * so that a few large channels take less of the range that rounding has to cover. If a norm, an
 * adaLN or another layer produces these inputs, its weights can do the division: then a runtime
 * need not know about it.
 */

/** What was folded. */
typedef struct aq_fold_report aq_fold_report;

/** Options of folding. Start with AQ_INIT(aq_fold_options). */
typedef struct aq_fold_options {
  /** sizeof(aq_fold_options). */
  uint32_t struct_size;
  /**
   * Type that all floats become: AQ_DTYPE_F32, _F16 or _BF16. By default each tensor keeps its
   * type, and changed weights are rounded to it; with f32 the model computes what it did.
   */
  aq_dtype dtype;
  /**
   * Exponent of the scales: channels are divided by absmax(X)^alpha / absmax(W)^(1-alpha). At
   * most 1. 0 means the default 0.5; a negative number means an alpha of 0.
   */
  double alpha;
} aq_fold_options;

/**
 * Writes a smoothed model: the tensors of `input`, anything that aq_source_open takes, to the
 * safetensors file `output`, with the inputs of layers scaled by what the calibration has observed
 * of them, wherever names tell what produces these inputs: in LLaMA-like, LLaDA's and DiT's
 * blocks. Names, shapes, dtypes and metadata stay. `fold_options`, `options` and `report` may be
 * NULL.
 *
 * The inputs of these layers have changed then, so that a calibration of the new model takes
 * running it. Fails with AQ_ERROR_FILE if nothing can be folded; the message says why.
 */
AQ_API aq_status aq_fold_file(const char *input,
                              const char *output,
                              const aq_calibration *calibration,
                              const aq_fold_options *fold_options,
                              const aq_run_options *options,
                              aq_fold_report **report,
                              aq_error *err);

/**
 * Writes the report as JSON, as `arrowquant fold --json` does: what was folded into what, the
 * scales, and what could not be folded and why. The text belongs to the report.
 */
AQ_API aq_status aq_fold_report_to_json(const aq_fold_report *report,
                                        const char **json,
                                        aq_error *err);

AQ_API void aq_fold_report_free(aq_fold_report *report);

/*
 * aq_model: an open quantized file.
 */

/** An open quantized file. Any number of threads may use it. */
typedef struct aq_model aq_model;

/** Called once, on any thread, when the library no longer uses the caller's memory. */
typedef void (*aq_release_fn)(void *user_data);

/**
 * Some rows of a tensor, without copying them. Pointers last until the model is freed, and point
 * into the file's memory map, unless the file is compressed: then planes are unpacked when first
 * viewed, and kept. In uncompressed files planes over 64 KiB are aligned to 64 bytes; other planes
 * need not be aligned.
 */
typedef struct aq_tensor_view {
  /** sizeof(aq_tensor_view). */
  uint32_t struct_size;
  /** First of these rows in the tensor. */
  size_t row_start;
  /** The rows, for products and decoding: `&view.matrix` can be passed to both. */
  aq_matrix matrix;
  /** XXH3-64 of the tile, see docs/format.md. */
  uint64_t checksum;
  /** Cosine as measured when the file was written; NaN when kept. */
  double cosine;
  /** SQNR as measured when the file was written, in dB; infinite without error, NaN when kept. */
  double sqnr_db;
  /** Bits per weight, scales and biases counted; NaN without weights. */
  double bits_per_weight;
} aq_tensor_view;

/**
 * Opens a Parquet file of this library, or a folder of parts, and maps it into memory. While it is
 * open, another file may replace it, but it must not be written to. Reads footers only;
 * aq_model_verify checks checksums.
 */
AQ_API aq_status aq_model_open(const char *path, aq_model **model, aq_error *err);

/**
 * Opens a file in memory, which must not change until `release` is called, or, if that is NULL,
 * until the model and every Arrow array exported from it are freed.
 *
 * `release` is called exactly once, even if the call fails.
 */
AQ_API aq_status aq_model_open_memory(const void *data,
                                      size_t data_len,
                                      aq_release_fn release,
                                      void *user_data,
                                      aq_model **model,
                                      aq_error *err);

/** Returns the number of tensors; 0 for NULL. */
AQ_API size_t aq_model_count(const aq_model *model);

/** Describes tensor `index`; tensors are in the order of the file. */
AQ_API aq_status aq_model_tensor(const aq_model *model,
                                 size_t index,
                                 aq_tensor_info *info,
                                 aq_error *err);

/** Finds the index of the tensor called `name`. Fails with AQ_ERROR_TENSOR if there is none. */
AQ_API aq_status aq_model_find(const aq_model *model,
                               const char *name,
                               size_t *index,
                               aq_error *err);

/**
 * Views tile `tile` of tensor `index`. Most tensors have one tile; aq_tensor_info has their
 * number.
 */
AQ_API aq_status aq_model_view(const aq_model *model,
                               size_t index,
                               size_t tile,
                               aq_tensor_view *view,
                               aq_error *err);

/**
 * Decodes `rows` rows of tensor `index`, from `row_start` on, as f32, f16 or bf16. `weights` has
 * rows * cols values. Kept f64, f32, f16, bf16 and f8 tensors are converted. Fails with
 * AQ_ERROR_TENSOR if the tensor has no such rows, or values that are not floats.
 */
AQ_API aq_status aq_model_dequantize_rows(const aq_model *model,
                                          size_t index,
                                          size_t row_start,
                                          size_t rows,
                                          aq_dtype dtype,
                                          void *weights,
                                          size_t weights_len,
                                          aq_error *err);

/**
 * Multiplies tensor `index` (rows x cols) with `batch` vectors, as aq_matvec does, all of its
 * tiles. `x` has batch * cols values, `y` batch * rows. Fails with AQ_ERROR_TENSOR for a kept
 * tensor.
 */
AQ_API aq_status aq_model_matvec(const aq_model *model,
                                 size_t index,
                                 const float *x,
                                 size_t x_count,
                                 size_t batch,
                                 float *y,
                                 size_t y_count,
                                 aq_error *err);

/**
 * Decodes all tensors into the safetensors file `output`, with the original names, shapes and
 * metadata. Floats become `dtype` (f32, f16 or bf16), or, for AQ_DTYPE_DEFAULT, what they were in
 * the source, except that quantized f8 tensors become bf16; other tensors do not change. Checks
 * every checksum. `options` may be NULL.
 */
AQ_API aq_status aq_model_dequantize(const aq_model *model,
                                     const char *output,
                                     aq_dtype dtype,
                                     const aq_run_options *options,
                                     aq_error *err);

/**
 * Finds what the file's footer says under `key`, such as "arrowquant.config" (docs/format.md). Fails
 * with AQ_ERROR_TENSOR if there is no such key. The value belongs to the model.
 */
AQ_API aq_status aq_model_metadata(const aq_model *model,
                                   const char *key,
                                   const char **value,
                                   aq_error *err);

/** Writes the file's footer as a JSON object of strings, by key. The text belongs to the model. */
AQ_API aq_status aq_model_metadata_to_json(const aq_model *model,
                                           const char **json,
                                           aq_error *err);

/** Closes the file. Arrow streams and arrays that were exported from it keep what they need. */
AQ_API void aq_model_free(aq_model *model);

/*
 * Static parameters of activations.
 */

/**
 * Static parameters of a tensor's activations, for a range of timesteps: an activation x is stored
 * as round(x / scale + zero_point). If the tensor has an input scale or a rotation, they apply to
 * activations from aq_transform_vectors.
 */
typedef struct aq_activation_params {
  /** sizeof(aq_activation_params). */
  uint32_t struct_size;
  /** The first timestep. */
  int32_t t_begin;
  /** The timestep after the last. */
  int32_t t_end;
  float scale;
  float zero_point;
} aq_activation_params;

/**
 * Finds the static parameters of activations that enter tensor `index` at a timestep. Fails with
 * AQ_ERROR_TENSOR if the file has none.
 */
AQ_API aq_status aq_model_activation_params(const aq_model *model,
                                            size_t index,
                                            int32_t timestep,
                                            aq_activation_params *params,
                                            aq_error *err);

/*
 * aq_verification: the result of checking a file.
 */

/** Result of checking a file. */
typedef struct aq_verification aq_verification;

/**
 * Checks every checksum of a model. With an `original` (or NULL), also checks that both hold the
 * same tensors, that kept ones are equal, that quantized ones are as close to it as the file says,
 * and that no cosine is below `min_cosine` (NaN or -1 for no such check). `options` may be NULL.
 *
 * AQ_OK means that the check was done; `failures` counts the tensors with a problem.
 * `verification` may be NULL.
 */
AQ_API aq_status aq_model_verify(const aq_model *model,
                                 const aq_source *original,
                                 double min_cosine,
                                 const aq_run_options *options,
                                 size_t *failures,
                                 aq_verification **verification,
                                 aq_error *err);

/**
 * Writes the result as JSON, as `arrowquant verify --json` does: "tensors" with "name", "problem"
 * (or null), "cosine" and "sqnr_db". The text belongs to the verification.
 */
AQ_API aq_status aq_verification_to_json(const aq_verification *verification,
                                         const char **json,
                                         aq_error *err);

AQ_API void aq_verification_free(aq_verification *verification);

/*
 * Quantized models as Arrow tables.
 */

/**
 * Exports a model as a stream of record batches of one tile each, with the columns of the file
 * (docs/format.md). Planes are not copied; the stream and every array from it keep what they point
 * to, so the model may be freed before them. `stream` need not be initialized; the caller releases
 * it.
 */
AQ_API aq_status aq_model_to_arrow(const aq_model *model,
                                   struct ArrowArrayStream *stream,
                                   aq_error *err);

#endif /* AQ_STD */

#ifdef __cplusplus
}
#endif

#endif
