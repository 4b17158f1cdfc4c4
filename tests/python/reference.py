"""An independent implementation of what the engine does with calibrations, from the papers, in plain
numpy and f64, which tests compare it with. A layer's Hessian h is the sum of x x^T over its inputs x."""

import numpy as np

ZERO_POINT = {2: 1.5, 4: 8.0, 8: 128.0}


def to_f16(x):
    return np.asarray(x).astype("<f2").astype(np.float64)


def spread(plane, group, cols):
    """Expands a value per group to a value per weight."""
    return np.repeat(plane, group, axis=1)[:, :cols]


def round_to_codes(w, scales, biases, bits):
    """Nearest codes, halves to even."""
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    return np.clip(np.rint((w - biases) * inverse), 0, 2**bits - 1)


def affine_grid(w, bits, group, shrink=1.0):
    """Scales and biases [rows, groups] by smallest and largest values."""
    groups = [w[:, i : i + group] for i in range(0, w.shape[1], group)]
    low = np.stack([g.min(axis=1) for g in groups], axis=1) * shrink
    high = np.stack([g.max(axis=1) for g in groups], axis=1) * shrink
    return to_f16((high - low) / (2**bits - 1)), to_f16(low)


def symmetric_grid(w, bits, group, importance=None, trials=64):
    """Scales [rows, groups] with the least squared error, weighted by importance, among those that
    codes of `trials` ranges ask for; and the biases that put zero at the zero point."""
    zero = ZERO_POINT[bits]
    scales = []
    for i in range(0, w.shape[1], group):
        x = w[:, i : i + group]
        h = np.ones(x.shape[1]) if importance is None else importance[i : i + group]
        extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], 1)[:, 0]
        extreme = np.abs(extreme) if bits == 2 else -extreme
        best, kept = np.full(len(x), -1.0), np.zeros(len(x))
        for ratio in np.linspace(0.4, 1.3, trials):
            trial = (ratio * extreme / zero)[:, None]
            levels = round_to_codes(x, trial, -zero * trial, bits) - zero
            product, power = (h * x * levels).sum(axis=1), (h * levels**2).sum(axis=1)
            gained = np.divide(product**2, power, out=np.zeros_like(power), where=power > 0)
            scale = np.divide(product, power, out=np.zeros_like(power), where=power > 0)
            kept = np.where(gained > best, scale, kept)
            best = np.maximum(gained, best)
        scales.append(kept)
    scales = to_f16(np.stack(scales, axis=1))
    return scales, -zero * scales


def gptq(w, h, scales, biases, bits, group, damping=0.01, act_order=True, block=128):
    """Codes for fixed grids; later columns compensate for each column's error (Frantar et al.,
    GPTQ, 2023)."""
    w, h = np.array(w, np.float64), np.array(h, np.float64)
    rows, cols = w.shape
    scales, biases = spread(scales, group, cols), spread(biases, group, cols)
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    order = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(cols)
    w, h, scales, biases = w[:, order], h[np.ix_(order, order)], scales[:, order], biases[:, order]
    upper = upper_of_inverse(h, damping)
    codes = np.empty((rows, cols))
    for begin in range(0, cols, block):
        end = min(begin + block, cols)
        errors = np.empty((rows, end - begin))
        for j in range(begin, end):
            codes[:, j] = round_to_codes(w[:, j], scales[:, j], biases[:, j], bits)
            decoded = codes[:, j] * scales[:, j] + biases[:, j]
            errors[:, j - begin] = (w[:, j] - decoded) / upper[j, j]
            w[:, j + 1 : end] -= np.outer(errors[:, j - begin], upper[j, j + 1 : end])
        w[:, end:] -= errors @ upper[begin:end, end:]
    codes[:, order] = codes.copy()
    return codes


def upper_of_inverse(h, damping):
    """U with U^T U = (h + damping)^-1, the damping raised until there is one."""
    mean = np.diag(h).mean()
    while True:
        try:
            inverse = np.linalg.inv(h + damping * mean * np.eye(len(h)))
            return np.linalg.cholesky((inverse + inverse.T) / 2).T
        except np.linalg.LinAlgError:
            damping = max(damping * 10, 1e-6)


def decode(codes, scales, biases, group):
    cols = codes.shape[1]
    return codes * spread(scales, group, cols) + spread(biases, group, cols)


def unit_gain(w, decoded, h=None):
    """The factor of each row's scales and biases that restores its amplitude."""
    seen = w if h is None else w @ h
    power, product = (seen * w).sum(axis=1), (seen * decoded).sum(axis=1)
    return np.divide(power, product, out=np.ones_like(power), where=product > 0)[:, None]


def output_error(w, decoded, h):
    """|x w^T - x decoded^T|^2 / |x w^T|^2 over the inputs x of h."""
    lost = w - decoded
    return ((lost @ h) * lost).sum() / ((w @ h) * w).sum()


def smoothing(inputs, w, alpha):
    """The factors that input channels are divided by and columns of w multiplied by (Xiao et al., SmoothQuant,
    2023); 1 where either has nothing. `inputs` are the largest magnitudes by channel."""
    largest = np.abs(w).max(axis=0)
    usable = (inputs > 0) & (largest > 0)
    scales = np.power(inputs, alpha, where=usable, out=np.ones_like(inputs))
    return np.divide(scales, np.power(largest, 1 - alpha), where=usable, out=np.ones_like(inputs))


def hadamard(size):
    """The Hadamard matrix of a power of two, normalized: its own inverse."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def rotated(x, block, signs=None):
    """Rotates rows of x in blocks of columns: signs first, then the Hadamard matrix."""
    x = x if signs is None else x * signs
    blocks = x.reshape(len(x), -1, block) @ hadamard(block)
    return blocks.reshape(x.shape)
