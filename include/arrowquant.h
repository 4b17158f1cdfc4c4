/*
 * ArrowQuant quantizes diffusion-model weights to INT2, INT4 and INT8.
 *
 * What holds for every function:
 *
 * - A call that can fail returns an `aq_status`: AQ_OK (0) or one of the AQ_ERROR codes. Its last
 *   parameter is a pointer to the caller's `aq_error`, which receives code and message, or NULL.
 *   Start with `aq_error err = AQ_INIT(aq_error);`. Errors are stored nowhere else.
 * - Inputs come first, outputs last. Outputs are written only on success.
 * - Structs that may grow begin with `uint32_t struct_size`, the caller's own `sizeof`. Initialize
 *   each with AQ_INIT, as in `aq_run_options options = AQ_INIT(aq_run_options);`, which sets
 *   struct_size, and clears every other field. The library reads and writes no more than
 *   struct_size bytes, and uses the defaults of fields beyond them. In options, 0 or NULL means
 *   the default; where 0 is a meaningful value, the field says how to ask for it. A struct_size of
 *   0 is refused, except in an `aq_error`.
 * - A handle (`aq_config *`, `aq_model *`, ...) is created by a call and freed by the `_free`
 *   function of its kind, which ignores NULL. A freed handle, or one of another kind, is refused
 *   with AQ_ERROR_ARGUMENT, unless its memory has been reused for another handle.
 * - Asking for a tensor, tile, layer, row, timestep or metadata key that does not exist, by name
 *   or by index, is an AQ_ERROR_TENSOR. (A setting that does not exist is an AQ_ERROR_CONFIG.)
 * - A handle passed as `const aq_x *` may be used by several threads at once; one passed as
 *   `aq_x *` by only one thread at a time. Handles may move between threads.
 * - Input strings, paths included, are NUL-terminated UTF-8 on every system. Output strings belong
 *   to the handle that returned them: they are valid until that handle is freed, or changed by a
 *   call that takes it without `const`.
 * - A parameter or field that ends in `_len` counts bytes, and one that ends in `_count` counts
 *   values.
 * - Callbacks run on the thread that made the call; only an aq_fitness_fn may run on others, if
 *   `parallel` is set. Returning false cancels: the call then returns AQ_ERROR_CANCELLED and
 *   leaves no file behind, except complete parts in a folder. (An aq_generation_fn ends the search
 *   instead.) A callback may call the library, but must not change or free what its own call uses,
 *   and must not throw, `longjmp` out or end its thread.
 * - After fork() in a multithreaded process, the child may only exec().
 * - Pointers of type `void *` need no alignment; pointers to other types must be aligned.
 * - A bug in the library does not terminate the caller: it is reported as AQ_ERROR_INTERNAL, with
 *   a message.
 * - AQ_ABI_VERSION and the SONAME change together, with every release that breaks programs built
 *   with an earlier header, before version 1.0 too. As long as they do not change, functions,
 *   constants and their meaning stay, structs only grow at their end, and enumerations and
 *   settings only gain values. A program that loads the library at run time compares
 *   aq_abi_version() with AQ_ABI_VERSION first.
 */

#ifndef ARROWQUANT_H
#define ARROWQUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Define AQ_NO_STD for firmware: this leaves only the functions that need no standard library and
 * no allocator. */
#ifndef AQ_NO_STD
#define AQ_STD
#endif

/*
 * Linkage.
 *
 * AQ_API precedes every function. On Windows define AQ_DLL in programs that use the DLL, and
 * AQ_DLL_EXPORTS in a DLL of your own that contains the static library and exports its functions.
 * For tools that read this header, such as cffi, define AQ_API as empty.
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
/** Initializes a struct: sets struct_size to sizeof(type), and every other field to 0. */
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
  /** sizeof(aq_error); 0 means the current size. */
  uint32_t struct_size;
  /** The status that was returned. */
  aq_status code;
  /**
   * Message, in UTF-8: names the file, the tensor and the reason. A message that is too long is
   * cut in the middle.
   */
  char message[AQ_MESSAGE_SIZE];
} aq_error;

#define AQ_OK 0

/** A setting is unknown or out of range. */
#define AQ_ERROR_CONFIG 1

/** The operating system refused to open, read or write a file. */
#define AQ_ERROR_IO 2

/** A file is damaged, incomplete or of the wrong kind. */
#define AQ_ERROR_FILE 3

/**
 * A tensor is invalid, or cannot be processed as requested; or a requested tensor, tile, layer,
 * row, timestep or metadata key does not exist.
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

/** An argument is invalid: NULL, a wrong length, a freed handle, text that is not UTF-8. */
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

/** Whether the amplitude that rows lose by rounding is restored. */
typedef int32_t aq_gain;

/** Type of an element; all values are little-endian. */
typedef int32_t aq_dtype;

/**
 * How weights are quantized. Start with AQ_INIT(aq_recipe), then set format and group_size; fields
 * left at 0 have their defaults.
 */
typedef struct aq_recipe {
  /** sizeof(aq_recipe). */
  uint32_t struct_size;
  /** AQ_FORMAT_INT2, AQ_FORMAT_INT4 or AQ_FORMAT_INT8. */
  aq_format format;
  /** Number of weights that share a scale: a multiple of 16 up to 1024, or 0 for a whole row. */
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
 * GPTQ: each column compensates for the rounding of earlier ones, using a calibration's Hessian.
 * Only for runs, not for aq_quantize_rows.
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

/** Returns the library's version, such as "0.1.0". The string is static. */
AQ_API const char *aq_version(void);

/**
 * Returns the library's AQ_ABI_VERSION. A program that loads the library at run time must first
 * compare this number with the AQ_ABI_VERSION of its header, and use the library only if they are
 * equal.
 */
AQ_API uint32_t aq_abi_version(void);

/**
 * Returns the name of the instruction set in use: the best of this machine, or a weaker one
 * selected by the environment variable AQ_ISA. The names are "scalar"; on x86-64 also "avx2",
 * "avx512" and "avx512vnni"; on AArch64 also "neon" and "neon-dotprod". If AQ_ISA is set to
 * anything else, the name is "unknown", and calls that need kernels fail with AQ_ERROR_CONFIG. The
 * string is static.
 */
AQ_API const char *aq_isa_name(void);

/*
 * Matrices: the layout of weights in memory.
 *
 * A quantized matrix has up to three planes: packed codes, scales, and, if the scheme is affine,
 * biases. Each plane holds one row after another; docs/format.md has the layout. The columns of
 * some matrices were scaled or rotated before quantization: `input_scale` and `rotation_block`
 * describe this, and every function that takes a matrix accounts for it. Decoding reverses the
 * transformation, and products apply it to the vectors.
 */

/**
 * A matrix of weights, quantized or kept. aq_model_view and aq_quantize_rows fill it in; for
 * planes of your own, start with AQ_INIT(aq_matrix) and set the fields that apply.
 *
 * The matrix owns no memory: its planes must remain valid while it is used. The size of the struct
 * changes only with AQ_ABI_VERSION, because other structs contain it; new fields will take the
 * place of `reserved`.
 */
typedef struct aq_matrix {
  /** sizeof(aq_matrix). */
  uint32_t struct_size;
  /** How weights are encoded; AQ_FORMAT_KEPT for weights that are not quantized. */
  aq_format format;
  /** Number of weights that share a scale: a multiple of 16 up to 1024, or 0 for a whole row. */
  uint32_t group_size;
  /** Default: symmetric. Ignored when kept. */
  aq_scheme scheme;
  /** Storage of scales and biases: AQ_DTYPE_F16 (the default) or AQ_DTYPE_F32. Ignored when kept. */
  aq_dtype scale_dtype;
  /**
   * Element type of kept values, which are in the codes plane. In a view of a quantized tensor,
   * the element type in the source; no function here reads it.
   */
  aq_dtype dtype;
  /** Rows of the matrix. */
  size_t rows;
  /** Weights in a row. */
  size_t cols;
  /**
   * Packed codes: element i of a row is in byte i * bits / 8 of the row, least significant bits
   * first. For kept weights, the values themselves. A format that needs no scales has no other
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
  /**
   * Factors that columns were multiplied by before quantization, one f16 per column; NULL for
   * none.
   */
  const void *input_scale;
  /** Bytes of input_scale: 2 * cols, or 0. */
  size_t input_scale_len;
  /** Number of columns that were rotated together, after scaling; 0 for no rotation. */
  size_t rotation_block;
  /** Seed of the rotation's signs, see docs/format.md. */
  uint64_t rotation_seed;
  /** Must be 0. */
  uint64_t reserved[4];
} aq_matrix;

/**
 * Sets `part` to `rows` rows of `matrix`, from `row_start` on. The planes are shared, not copied.
 * `part` may be `matrix` itself. Use this to decode or multiply in pieces, for example one piece
 * per thread.
 *
 * Fails with AQ_ERROR_TENSOR if the matrix has no such rows.
 */
AQ_API aq_status aq_matrix_rows(const aq_matrix *matrix,
                                size_t row_start,
                                size_t rows,
                                aq_matrix *part,
                                aq_error *err);

/**
 * Decodes a matrix as f32, f16 or bf16; f16 and bf16 are the f32 result, rounded half to even.
 * `weights` has room for rows * cols values, which are `weights_len` bytes, and must not overlap
 * the matrix.
 *
 * Scaling and rotation of columns are undone. Kept weights of f32, f16 and bf16 are converted; for
 * other kept types call aq_model_dequantize_rows. The contents of planes are not checked: scales
 * that are not finite give weights that are not finite.
 *
 * Allocates nothing, except one row if a matrix with scaled or rotated columns is decoded as f16
 * or bf16. The firmware library refuses this case with AQ_ERROR_ARGUMENT.
 */
AQ_API aq_status aq_dequantize_rows(const aq_matrix *matrix,
                                    aq_dtype dtype,
                                    void *weights,
                                    size_t weights_len,
                                    aq_error *err);

/*
 * Products of matrices with vectors.
 *
 * Vectors are f32 (aq_matvec), or signed bytes (aq_matvec_int8), which aq_quantize_vectors makes
 * from f32; these are also known as dynamic activations. Products start no threads; any number of
 * threads may multiply different rows at once (aq_matrix_rows), each with its own `y`. If columns
 * of the matrix were scaled or rotated, vectors are transformed accordingly, in memory that is
 * allocated for the call.
 */

#if defined(AQ_STD)
/**
 * Vectors of signed bytes, and the kind of matrix that they are for. The caller sets the pointers
 * and counts of values, scales and sums; aq_quantize_vectors sets the rest.
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
  /** Identifies how the vectors were scaled and rotated for the matrix; 0 if they were not. */
  uint64_t transform;
  /** Room for batch * cols values, in an internal order. No value is -128. */
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
  /** Room for batch * groups sums, each the scale of a group times the sum of its values. */
  float *sums;
  /** Number of sums. */
  size_t sums_count;
} aq_vectors;
#endif

/**
 * Multiplies a quantized matrix with `batch` vectors: `y[b][r]` is the sum over c of
 * `w[r][c] * x[b][c]`. `x` has batch * cols values, `y` batch * rows. `y` must not overlap an
 * input. Fastest if planes and `x` start at multiples of 64 bytes and rows are contiguous.
 *
 * The error of each y is at most 2^-17 times the sum of |w * x|. Unlike all other results,
 * products may differ between instruction sets.
 *
 * Fails with AQ_ERROR_TENSOR for a kept matrix. The firmware library, which cannot allocate, also
 * fails with AQ_ERROR_ARGUMENT for scaled or rotated columns: transform the vectors with
 * aq_transform_vectors, and multiply them with a copy of the matrix in which `input_scale` is
 * NULL, and `input_scale_len` and `rotation_block` are 0.
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
 * so that they can be multiplied with the planes as stored. If the matrix has neither an input
 * scale nor a rotation, the vectors do not change. Needed only for your own products, and for
 * aq_matvec in the firmware library: other functions do this by themselves.
 */
AQ_API aq_status aq_transform_vectors(const aq_matrix *matrix,
                                      float *x,
                                      size_t x_count,
                                      size_t batch,
                                      aq_error *err);

#if defined(AQ_STD)
/**
 * Quantizes `batch` vectors to signed bytes, for aq_matvec_int8 with this matrix, or with any
 * other that has the same cols, format, group_size, input scale and rotation. The planes are not
 * read.
 *
 * Vectors are first transformed as the matrix requires. In each group of a vector, values are then
 * scaled so that the largest magnitude becomes 127, and rounded half to even. Outputs must not
 * overlap each other or the input.
 *
 * Fails with AQ_ERROR_ARGUMENT for a NaN or infinity; the contents of the outputs are then
 * undefined.
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
 * Codes and values are multiplied as integers, with the CPU's integer dot-product instructions if
 * it has them (AVX-512 VNNI, NEON dot products).
 *
 * The integer products are exact. For w and x as quantized, the error of each y is at most 2^-17
 * times the sum over groups of max |w| * sum |x|, where max |w| is the largest magnitude that a
 * code of the group can represent. The error of quantizing x, up to half a scale for each value,
 * is additional.
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
/** Quality of quantized rows, measured on the decoded weights. */
typedef struct aq_quality {
  /** sizeof(aq_quality). */
  uint32_t struct_size;
  /** Cosine of the angle between original and decoded weights. */
  double cosine;
  /** Signal-to-quantization-noise ratio in dB; infinite if there is no error. */
  double sqnr_db;
  /** Bits per weight, including scales and biases; NaN if there are no weights. */
  double bits_per_weight;
} aq_quality;
#endif

/**
 * Sets the lengths in `planes` to those that `rows` rows of `cols` weights need, and leaves its
 * pointers unchanged.
 */
AQ_API aq_status aq_plane_sizes(const aq_recipe *recipe,
                                size_t rows,
                                size_t cols,
                                aq_planes *planes,
                                aq_error *err);

#if defined(AQ_STD)
/**
 * Quantizes `rows` rows of `cols` weights (f32, f16 or bf16, row after row) into `planes`, whose
 * lengths must be as set by aq_plane_sizes.
 *
 * `importance` weights the input channels in the choice of scales: `cols` numbers >= 0, or NULL.
 * `matrix` receives the result, for products and decoding; it points to the planes. `quality`
 * receives the measurements. Both may be NULL; without `quality` nothing is measured, which is
 * faster. Outputs must not overlap each other or an input.
 *
 * Fails with AQ_ERROR_TENSOR, naming the row, for a weight that is NaN or infinite, and if the
 * scale dtype cannot hold a scale: then choose AQ_DTYPE_F32. After a failure the contents of the
 * planes are undefined.
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
 * Compares `b` with the original `a`: two arrays with the same number of values, each of f32, f16
 * or bf16. Lengths are in bytes. Both outputs are required.
 *
 * `cosine` is the cosine of the angle between them: 1 if both are all zeros, and 0 if only one is.
 * `sqnr_db` is the signal-to-quantization-noise ratio in dB: infinite if there is no difference,
 * and minus infinity if only `a` is all zeros.
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
 * Quantizing activations, for products that the caller computes: the input of a layer, row by row
 * (token by token), in plain order. Nothing here allocates or starts threads, and any number of
 * threads may call it at once.
 */

#if defined(AQ_STD)
/**
 * How activations are quantized: with dynamic scales, from their own magnitudes, if `scale` is 0;
 * otherwise with this static scale and zero point. Start with AQ_INIT(aq_activation_options).
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
  /** Divisors of the columns, applied first: normal numbers above 0, or NULL for none. */
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
 * Dynamic: let `a` be the largest magnitude of a group, and `top` 127, or 7 for 4 bits. Values are
 * int8, `round(x * (top / a))`, and represent `value * (a / top)`. `scales` receives rows * groups
 * numbers, `a / top` each, where groups is ceil(cols / group_size), or 1 for a group_size of 0. A
 * group without magnitudes above 1e-30 gets zeros, and the scale 0.
 *
 * Static: values are uint8, `clamp(round(x * (1 / scale) + zero_point), 0, 2^bits - 1)`, and
 * represent `(value - zero_point) * scale`. There are no `scales`: pass NULL and 0.
 *
 * `round` rounds half to even. All arithmetic is f32, with each operation rounded, so results are
 * the same on every machine. Outputs must not overlap each other or an input.
 *
 * Fails with AQ_ERROR_TENSOR, naming row and column, for a value that is NaN or infinite, or, with
 * dynamic scales, becomes so when divided by `input_scale`. The contents of the outputs are then
 * undefined.
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
 * values win; rules accumulate.
 */

/** Settings of a run. */
typedef struct aq_config aq_config;

/**
 * Creates a configuration with the defaults of a profile: "edge", "local" or "cloud", or NULL for
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

/**
 * Gets the current value of `key`, in the form that aq_config_set takes. The text belongs to the
 * config.
 */
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
 * Applies the environment variables that begin with AQ_, such as AQ_BIT_WIDTH=2. Other calls read
 * none of them, except AQ_ISA.
 */
AQ_API aq_status aq_config_merge_env(aq_config *config, aq_error *err);

/**
 * Writes all current settings as YAML, which aq_config_merge_yaml can read. The text belongs to
 * the config.
 */
AQ_API aq_status aq_config_to_yaml(const aq_config *config,
                                   const char **yaml,
                                   aq_error *err);

AQ_API void aq_config_free(aq_config *config);

/*
 * aq_calibration: activation statistics of a model's layers, by timestep.
 *
 * A calibration observes the inputs of each layer, which the caller's own runtime computes, and
 * stores only statistics. For each layer and bin of timesteps these are the range and the sum of
 * squares of each input channel, and a histogram of all values; for each group of bins, the
 * Hessian (the sum of x x^T), which AQ_METHOD_GPTQ needs. Calibrations from several machines can
 * be merged.
 *
 * Layers are named after their weights, with or without ".weight" at the end. Several threads may
 * use a calibration at once, except to free it; threads that observe the same layer take turns.
 * The order of rows affects sums only by rounding, and does not affect counts, ranges and
 * histograms.
 */

/** Activation statistics of a model's layers, by timestep. */
typedef struct aq_calibration aq_calibration;

/**
 * How a calibration divides timesteps into bins, and what it stores. Start with
 * AQ_INIT(aq_calibration_options).
 */
typedef struct aq_calibration_options {
  /** sizeof(aq_calibration_options). */
  uint32_t struct_size;
  /**
   * Number of timesteps of the model, which are numbered from 0: up to 2^20, or 0 for 1000. If
   * the mask ratio of a text model serves as time, the timestep is the ratio times this number.
   */
  uint32_t timesteps;
  /**
   * Number of bins of timesteps, each with ranges, squares and a histogram: up to 4096, and not
   * more than timesteps; 0 for 50.
   */
  uint32_t bins;
  /** Not 0: stores no Hessians. */
  uint32_t no_hessian;
  /**
   * Number of groups of bins, each with a Hessian; must divide the number of bins; 0 for 10. The
   * Hessian of a layer with n channels takes 4 n (n + 1) bytes.
   */
  uint32_t hessian_groups;
  /** Maximum bytes of Hessians in memory; the others go to a temporary file. 0 for no limit. */
  uint64_t memory_limit;
  /** Folder of the temporary file; NULL for the system's folder for temporary files. */
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

/** Creates an empty calibration. `options` may be NULL for the defaults. */
AQ_API aq_status aq_calibration_new(const aq_calibration_options *options,
                                    aq_calibration **calibration,
                                    aq_error *err);

/**
 * Reads a file that aq_calibration_save wrote, to use it or to continue observing. Hessians beyond
 * `memory_limit` bytes (0: no limit) go to a file in the system's folder for temporary files.
 */
AQ_API aq_status aq_calibration_load(const char *path,
                                     uint64_t memory_limit,
                                     aq_calibration **calibration,
                                     aq_error *err);

/** Writes the calibration to the Parquet file `path`, which appears complete or not at all. */
AQ_API aq_status aq_calibration_save(const aq_calibration *calibration,
                                     const char *path,
                                     aq_error *err);

/**
 * Adds the observations of `from`, another calibration of the same model, to `into`. `from` does
 * not change. Both must have the same timesteps and bins; both or neither must have Hessians, of
 * the same groups; and their schedules must be equal, unless one has none. Counts, ranges and
 * histograms are as if one calibration had observed everything; sums are the same up to rounding.
 * After an error nothing is added, unless a temporary file failed (AQ_ERROR_IO).
 */
AQ_API aq_status aq_calibration_merge(const aq_calibration *into,
                                      const aq_calibration *from,
                                      aq_error *err);

/**
 * Sets the noise schedule, which is the fraction of the signal that is left at each timestep:
 * `alphas_count` numbers from 0 to 1, one per timestep, the cumulative products of 1 - beta.
 * Needed only to weight timesteps by their noise.
 */
AQ_API aq_status aq_calibration_set_schedule(const aq_calibration *calibration,
                                             const double *alphas,
                                             size_t alphas_count,
                                             aq_error *err);

/**
 * Observes rows of a layer's input at a timestep: `rows` vectors of `cols` input channels, one
 * after another, in the `x_len` bytes at `x`, of AQ_DTYPE_F32, _F16 or _BF16. A row is a token, a
 * pixel or a sample. The input of a convolution must be unfolded first: the channels of a row are
 * the inputs of one output (channels x kernel height x kernel width), in the order of the weight's
 * columns. `x` is not used after the call.
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
 * Describes layer `index`. Layers are sorted by the bytes of their names, so observing a new layer
 * changes the indices of those after it.
 */
AQ_API aq_status aq_calibration_layer(const aq_calibration *calibration,
                                      size_t index,
                                      aq_layer_info *info,
                                      aq_error *err);

/**
 * Sets the calibration for runs with this config; NULL for none. The config and its copies hold
 * what they need, so the calibration may be freed first. It is not part of the config's YAML.
 */
AQ_API aq_status aq_config_set_calibration(aq_config *config,
                                           const aq_calibration *calibration,
                                           aq_error *err);

AQ_API void aq_calibration_free(aq_calibration *calibration);

/* The Arrow C data and stream interfaces, as their specification defines them. */

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

/** Options of opening a source. Start with AQ_INIT(aq_open_options). */
typedef struct aq_open_options {
  /** sizeof(aq_open_options). */
  uint32_t struct_size;
  /** Names of pipeline components to leave out. Their folders may be missing. */
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
  /** Rows of the tensor as a matrix: all dimensions but the first are folded into columns. */
  size_t rows;
  /** Columns of the tensor as a matrix. */
  size_t cols;
  /** Bytes of the tensor's values in the source. */
  size_t bytes;
  /** Number of tiles (blocks of whole rows) that store the tensor in a file; 0 in a source. */
  size_t tiles;
} aq_tensor_info;

/**
 * Opens a model to quantize. Reads headers only. f8 weights with scales appear as bf16 tensors,
 * multiplied by their scales; the scales are not tensors of the source. `options` may be NULL.
 *
 * - A safetensors file, the `*.safetensors.index.json` of its shards, or a folder with one of
 *   these.
 * - The folder of a diffusers pipeline, with its `model_index.json`: all its components, except
 *   those in `without`. Tensor names begin with the component's name and a dot
 *   (`transformer.blocks.0.attn.qkv.weight`). An unknown component in `without`, or any component
 *   if this is not a pipeline, is an error.
 * - A GGUF file, any part of a split one (`NAME-00001-of-00003.gguf`), or a folder with one of
 *   these. Tensors are f32, f16, bf16, or packed as Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K,
 *   IQ4_NL or IQ4_XS; packed tensors are read as f32.
 * - A Parquet file: a table with one tensor per row, in columns as aq_source_from_arrow takes them
 *   (`data` must be binary), or a file written by this library in which all tensors are kept.
 * - A JSON file that lists tensors without their weights, for plans: `{"dtype": "bf16",
 *   "tensors": {"w": [2, 3], "ids": {"shape": [4], "dtype": "i64"}}}`.
 */
AQ_API aq_status aq_source_open(const char *path,
                                const aq_open_options *options,
                                aq_source **source,
                                aq_error *err);

/** Creates an empty source, for aq_source_add_tensor. */
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
 * Creates a source from the tensors in an Arrow table, without copying values. The table has one
 * tensor per row: `name` a string, `shape` a list of int64, and `data` either binary, with its
 * dtype ("f32", "bf16", ...) in a column `dtype`, or a list of float or half float.
 *
 * The library takes ownership of the stream, even if the call fails: the caller must not use or
 * release it any more, and its `release` is NULL afterwards. The stream's arrays are released when
 * the source is freed.
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

/**
 * How a run works; no option changes how tensors are quantized. Start with
 * AQ_INIT(aq_run_options).
 */
typedef struct aq_run_options {
  /** sizeof(aq_run_options). */
  uint32_t struct_size;
  /**
   * Number of working threads; with 1, none is started. 0 means the config's `num_threads`, or,
   * without a config, as many as the machine has.
   */
  uint32_t threads;
  aq_progress_fn progress;
  aq_log_fn log;
  /** Passed to progress and log. */
  void *user_data;
  /**
   * Not 0: requires the output to be a folder, and refuses a single file. Runs into a folder
   * continue with existing parts by default.
   */
  uint32_t resume;
  /**
   * For a folder: the number of the share to do, from 1 to `parts`; aq_merge combines the
   * shares. 0, with `parts` 0, means everything.
   */
  uint32_t part;
  uint32_t parts;
  /** For a folder: bytes of planes after which a part ends; 0 means 128 MiB. */
  uint64_t part_bytes;
  /**
   * Not 0: for a folder, starts over and removes the parts of an earlier run, even of another
   * model or with other settings. No other run may be writing to the folder.
   */
  uint32_t restart;
} aq_run_options;

/** Information. */
#define AQ_LOG_INFO 1

/** A warning: probably not what was intended. */
#define AQ_LOG_WARNING 2

/** A notice for the user, not a problem: for example, that the run continues with existing parts. */
#define AQ_LOG_NOTICE 3

/*
 * aq_plan: the format of each tensor, chosen before any work.
 */

/** Formats chosen for the tensors of a source. */
typedef struct aq_plan aq_plan;

/** Plan for one tensor. Strings belong to the plan. */
typedef struct aq_tensor_plan {
  /** sizeof(aq_tensor_plan). */
  uint32_t struct_size;
  /** Format; AQ_FORMAT_KEPT for a tensor that is kept, with 0 in the next five fields. */
  aq_format format;
  /** Number of weights that share a scale; 0 for a whole row. */
  uint32_t group_size;
  aq_scheme scheme;
  /**
   * Storage of scales: AQ_DTYPE_F16 or AQ_DTYPE_F32, or AQ_DTYPE_DEFAULT, which is f16, except
   * f32 in tiles that need it.
   */
  aq_dtype scale_dtype;
  aq_method method;
  aq_gain gain;
  const char *name;
  /** Bytes of the name without its final NUL. */
  size_t name_len;
  /** Reason for this format, in a few words. */
  const char *reason;
  /** Bytes of the tensor's values in the source. */
  size_t source_bytes;
  /** Predicted bytes of the tensor's planes. */
  size_t bytes;
  /** Predicted bits per weight; NaN if there are no weights. */
  double bits_per_weight;
  /**
   * Required cosine, of the layer's outputs if the calibration covers the layer, else of the
   * weights; a tensor below it gets more bits. NaN for none.
   */
  double min_cosine;
} aq_tensor_plan;

/**
 * Plans for the tensors of a source. `config` (NULL for the defaults) and `options` may be NULL.
 * The plan needs none of its inputs afterwards.
 *
 * With a budget ("max_size", "avg_bits", "mixed_precision"), first measures the loss of each
 * tensor in each format, on a sample of its rows, with the threads, progress (in bytes of the
 * sample) and log of `options`. Fails with AQ_ERROR_CONFIG for a budget that no plan fits; the
 * message has the arithmetic.
 */
AQ_API aq_status aq_plan_new(const aq_source *source,
                             const aq_config *config,
                             const aq_run_options *options,
                             aq_plan **plan,
                             aq_error *err);

/** Returns the number of tensors; 0 for NULL. */
AQ_API size_t aq_plan_count(const aq_plan *plan);

/** Gets the plan for tensor `index`; tensors are in the order of the source. */
AQ_API aq_status aq_plan_tensor(const aq_plan *plan,
                                size_t index,
                                aq_tensor_plan *entry,
                                aq_error *err);

/**
 * Predicts the bytes of the file that a run will write: planes exactly, everything else to a few
 * hundred bytes per tensor. The size changes with compression, with scales that turn out to need
 * f32, and with tensors that get more bits to reach their cosine. Fails with AQ_ERROR_PLAN if the
 * plan does not match `source`.
 */
AQ_API aq_status aq_plan_file_bytes(const aq_plan *plan,
                                    const aq_source *source,
                                    uint64_t *bytes,
                                    aq_error *err);

/**
 * Changes the plan for one tensor: `settings` is "keep", or a list such as "bits:8,group:64", of
 * any of bits, group, scheme, method, gain, scale_dtype and min_cosine.
 */
AQ_API aq_status aq_plan_set(aq_plan *plan,
                             const char *tensor,
                             const char *settings,
                             aq_error *err);

/**
 * Writes the plan as JSON, as `arrowquant plan --json` does, with "modality", "evidence" (the
 * reasons for the modality), "warnings" and all tensors. The text belongs to the plan.
 */
AQ_API aq_status aq_plan_to_json(const aq_plan *plan, const char **json, aq_error *err);

/** Reads a plan from JSON, edited or not. */
AQ_API aq_status aq_plan_from_json(const char *json, aq_plan **plan, aq_error *err);

AQ_API void aq_plan_free(aq_plan *plan);

/*
 * aq_report: the measurements of a run.
 */

/** Measurements of a run, on the weights as decoded from the file. */
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
  /** Reason for this format, in a few words. */
  const char *reason;
  /** Bytes of the tensor's planes. */
  size_t bytes;
  /** Bits per weight, including scales and biases; NaN if there are no weights. */
  double bits_per_weight;
  /**
   * Cosine of the angle between original and decoded weights; NaN when kept, or when all weights
   * are 0.
   */
  double cosine;
  /**
   * Signal-to-quantization-noise ratio in dB; infinite if there is no error, NaN if the cosine
   * is NaN.
   */
  double sqnr_db;
  /** Number of tiles whose scales did not fit f16 and are f32. */
  size_t f32_scale_tiles;
  /**
   * Relative squared error of the layer's output on the calibration's inputs, |X W - X Q|^2 / |X
   * W|^2, with timesteps weighted as in quantization; NaN if no calibration covers this layer.
   * The report's JSON also has it by time.
   */
  double output_error;
  /**
   * Cosine of the angle between the original and the quantized layer's outputs; NaN if
   * `output_error` is NaN.
   */
  double output_cosine;
  /**
   * Required cosine, of the layer's outputs if the calibration covers the layer, else of the
   * weights. NaN for none.
   */
  double min_cosine;
  /**
   * Number of attempts that did not reach the required cosine, before the final format. The
   * report's JSON lists their measurements as "ladder".
   */
  size_t ladder_steps;
  /** Not 0: still below the required cosine, because the budget left no room for more bits. */
  uint32_t below_min_cosine;
} aq_tensor_report;

/** Totals of a run. */
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
  /** Number of quantized weights. */
  uint64_t weights;
  /** Bytes of the planes of quantized tensors. */
  uint64_t bytes;
  /** Bits per quantized weight, including scales and biases; NaN if there are none. */
  double bits_per_weight;
  /** Cosine over all quantized tensors; NaN if there are none. */
  double cosine;
  /**
   * Signal-to-quantization-noise ratio over all quantized tensors, in dB; infinite if there is
   * no error, NaN if there are no quantized tensors.
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
 * An output that ends in ".parquet" is one file, which appears complete at its path, or not at
 * all; its bytes depend only on input and settings. Any other output is a folder of parts with a
 * manifest.json: each part appears complete, and after an interruption the same run continues with
 * the existing parts. A folder belongs to one source and one set of settings; another run into it
 * is refused, unless `restart` is set.
 *
 * With a budget ("max_size", "avg_bits", "mixed_precision") progress covers first the measuring,
 * then the run.
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
 * Runs a plan into the caller's memory: writes the same bytes as to a file, and sets `written` to
 * their number. Fails with AQ_ERROR_IO if `output` is too small; after any failure its contents
 * are undefined. `output` must not overlap the tensors of the source. aq_model_open_memory opens
 * the result without copying it.
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
 * Merges the parts that several runs with `part` wrote to a folder into one model: checks that all
 * parts exist and belong together, and writes the manifest.
 */
AQ_API aq_status aq_merge(const char *folder, aq_error *err);

/*
 * aq_analysis: the loss of each tensor in each format.
 */

/** Measured losses of tensors in each format. */
typedef struct aq_analysis aq_analysis;

/**
 * Measures the loss of each tensor that can be quantized, on a sample of its rows: in the formats
 * that a budget may choose from ("candidates" of `config`), and in the format that `config` gives
 * it. With a calibration in `config`, the loss is that of the layer's outputs. `config` (NULL for
 * the defaults) and `options` (threads, progress in bytes of the sample, and log) may be NULL.
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
 * A budget ("max_size", "avg_bits") minimizes the sum of the errors of tensors. The quality of a
 * model need not be such a sum: a search tries whole plans and scores each with the caller's own
 * function.
 */

/** Means 0 in fields where 0 means the default. */
#define AQ_NONE UINT32_MAX

/** The history of a search. */
typedef struct aq_evolution aq_evolution;

/**
 * Scores a candidate: higher is better, any finite number. Score a useless candidate with a very
 * low number, such as -1e300. Minus infinity ends the search with the best so far; NaN and
 * infinity are errors.
 *
 * The candidate is valid until the function returns, and belongs to the search. It can be read,
 * run (aq_plan_run, aq_plan_run_into) and written as JSON, on any thread.
 */
typedef double (*aq_fitness_fn)(void *user_data, const aq_plan *candidate);

/** State of the search after a generation. */
typedef struct aq_generation {
  /** sizeof(aq_generation) in the library. */
  uint32_t struct_size;
  /** Number of the generation; 0 is the start. */
  uint32_t generation;
  /** Number of candidates scored so far; repeated candidates are not scored again. */
  uint64_t evaluations;
  /** The best fitness so far. */
  double best;
  /** Mean fitness of the parents of the next generation: the best fifth so far. */
  double mean;
  /** Bytes of the best candidate's planes, counting only tensors that the search decides on. */
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
   * Not 0: `fitness` may be called by several threads at once, as many as `threads` of the run
   * options. 0: it is called only on the thread that made the call.
   */
  uint32_t parallel;
  /** Not 0: continues from the checkpoint, if it exists. */
  uint32_t resume;
  /** File that the search is saved to after each generation; NULL for none. */
  const char *checkpoint;
  /**
   * Scores candidates. NULL means minus the sum of the relative errors of tensors; for that
   * measure, a budget already finds the best plan.
   */
  aq_fitness_fn fitness;
  aq_generation_fn generation;
  /** Passed to fitness and generation. */
  void *user_data;
} aq_evolve_options;

/**
 * Searches for the plan with the highest fitness. The limit in bytes is the budget of `config`,
 * or, without a budget, the size of the plan that `config` gives. The first generation has the
 * budget's plan, and the plans with one format for all tensors. Candidates use the limit fully:
 * tensors get more bits as long as these fit. With the same "seed", and a fitness that depends
 * only on the plan, the search is the same with any number of threads.
 *
 * First measures the loss of each tensor in each format, as aq_plan_new does, with the threads,
 * progress and log of `options`. A parallel fitness uses the same number of threads. `config`,
 * `evolve`, `options` and `evolution` may be NULL.
 *
 * Fails with AQ_ERROR_CANCELLED if the search is ended before a plan is found.
 */
AQ_API aq_status aq_evolve(const aq_source *source,
                           const aq_config *config,
                           const aq_evolve_options *evolve,
                           const aq_run_options *options,
                           aq_plan **plan,
                           aq_evolution **evolution,
                           aq_error *err);

/**
 * Writes the history as JSON, as `arrowquant evolve --json` does: "fitness" (of the best plan),
 * "start" (the fitness of the budget's plan; null if it was not scored), "generations" (the
 * history), "stopped" (whether the search was ended early), "seed", "limit_bytes" and "additive".
 * The text belongs to the evolution.
 */
AQ_API aq_status aq_evolution_to_json(const aq_evolution *evolution,
                                      const char **json,
                                      aq_error *err);

AQ_API void aq_evolution_free(aq_evolution *evolution);

/*
 * aq_fold_report: smoothing folded into the weights of preceding layers.
 *
 * Smoothing divides each input channel of a layer by a scale, and multiplies the weights of that
 * channel by the same scale, so that a few large channels take less of the range that rounding has
 * to cover. If a norm, an adaLN or another layer produces the inputs, the division can be folded
 * into its weights; the runtime then needs no support for smoothing.
 */

/** Result of folding: what was folded, and what was not. */
typedef struct aq_fold_report aq_fold_report;

/** Options of folding. Start with AQ_INIT(aq_fold_options). */
typedef struct aq_fold_options {
  /** sizeof(aq_fold_options). */
  uint32_t struct_size;
  /**
   * Type of all floats in the output: AQ_DTYPE_F32, _F16 or _BF16. By default each tensor has
   * its original type, to which changed weights are rounded; with f32 the model computes the
   * same as before.
   */
  aq_dtype dtype;
  /**
   * Exponent of the scales: channels are divided by absmax(X)^alpha / absmax(W)^(1-alpha). At
   * most 1. 0 means the default 0.5; a negative number means an alpha of 0.
   */
  double alpha;
} aq_fold_options;

/**
 * Writes a smoothed model: reads `input`, which is anything that aq_source_open takes, and writes
 * the safetensors file `output`, with the inputs of layers scaled according to the calibration.
 * Layers can be smoothed if tensor names tell what produces their inputs: in the blocks of
 * LLaMA-like models, LLaDA and DiT. Names, shapes and metadata do not change, and dtypes only as
 * `fold_options` say. `fold_options`, `options` and `report` may be NULL.
 *
 * The inputs of these layers are different in the new model: to calibrate it, run it. Fails with
 * AQ_ERROR_FILE if nothing can be folded; the message says why.
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
 * Some rows of a tensor, without copying them. Pointers are valid until the model is freed. They
 * point into the file's memory map; if the file is compressed, its planes are decompressed into
 * memory when first viewed. In uncompressed files planes over 64 KiB are aligned to 64 bytes;
 * other planes need not be aligned.
 */
typedef struct aq_tensor_view {
  /** sizeof(aq_tensor_view). */
  uint32_t struct_size;
  /** Index in the tensor of the first row. */
  size_t row_start;
  /** The rows, for products and decoding: `&view.matrix` can be passed to both. */
  aq_matrix matrix;
  /** XXH3-64 of the tile, see docs/format.md. */
  uint64_t checksum;
  /** Cosine as measured when the file was written; NaN when kept. */
  double cosine;
  /**
   * SQNR as measured when the file was written, in dB; infinite if there is no error, NaN when
   * kept.
   */
  double sqnr_db;
  /** Bits per weight, including scales and biases; NaN if there are no weights. */
  double bits_per_weight;
} aq_tensor_view;

/**
 * Opens a Parquet file written by this library, or a folder of parts, and maps it into memory.
 * While it is open, the file may be replaced by another, but must not be written to. Reads footers
 * only; aq_model_verify checks checksums.
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
 * Views tile `tile` of tensor `index`. Most tensors have one tile; `tiles` of aq_tensor_info is
 * the number.
 */
AQ_API aq_status aq_model_view(const aq_model *model,
                               size_t index,
                               size_t tile,
                               aq_tensor_view *view,
                               aq_error *err);

/**
 * Decodes `rows` rows of tensor `index`, from `row_start` on, as f32, f16 or bf16. `weights` has
 * rows * cols values. Kept f64, f32, f16, bf16 and f8 tensors are converted. Fails with
 * AQ_ERROR_TENSOR if the tensor has no such rows, or if its values are not floats.
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
 * Multiplies all tiles of tensor `index` (rows x cols) with `batch` vectors, as aq_matvec does.
 * `x` has batch * cols values, `y` batch * rows. Fails with AQ_ERROR_TENSOR for a kept tensor.
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
 * metadata. Floats become `dtype` (f32, f16 or bf16). With AQ_DTYPE_DEFAULT they have the type
 * that they had in the source, except that quantized f8 tensors become bf16. Tensors of other
 * types do not change. Checks every checksum. `options` may be NULL.
 */
AQ_API aq_status aq_model_dequantize(const aq_model *model,
                                     const char *output,
                                     aq_dtype dtype,
                                     const aq_run_options *options,
                                     aq_error *err);

/**
 * Finds the value of `key` in the file's footer, for example of "arrowquant.config"
 * (docs/format.md). Fails with AQ_ERROR_TENSOR if there is no such key. The value belongs to the
 * model.
 */
AQ_API aq_status aq_model_metadata(const aq_model *model,
                                   const char *key,
                                   const char **value,
                                   aq_error *err);

/** Writes the file's footer as a JSON object of keys and strings. The text belongs to the model. */
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
 * as round(x / scale + zero_point). If the tensor has an input scale or a rotation, the parameters
 * apply to activations that aq_transform_vectors has transformed.
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
 * Finds the static parameters of the input activations of tensor `index` at a timestep. Fails with
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
 * Checks every checksum of a model. If `original` is not NULL, also checks that both have the same
 * tensors, that kept tensors are equal, that quantized tensors are as close to the original as the
 * file says, and that no cosine is below `min_cosine` (NaN or -1 for no such check). `options` may
 * be NULL.
 *
 * AQ_OK means that the checks were carried out, not that they passed: `failures` counts the
 * tensors with a problem. `verification` may be NULL.
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
 * (docs/format.md). Planes are not copied; the stream and every array from it hold the memory that
 * they point to, so the model may be freed before them. `stream` need not be initialized; the
 * caller releases it.
 */
AQ_API aq_status aq_model_to_arrow(const aq_model *model,
                                   struct ArrowArrayStream *stream,
                                   aq_error *err);

#endif /* AQ_STD */

#ifdef __cplusplus
}
#endif

#endif
