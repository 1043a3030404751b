"""The matrix that makes features of a given covariance white, and its derivatives."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bnjax.normalization.arguments import check_floating
from bnjax.normalization.settings import check_choice, check_epsilon, known_number

Method = Literal["zca", "pca"]

# Accelerators round the factors of a product to bfloat16 or so, unless told not to.
_matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def whitening_matrix(cov: jax.Array, *, method: Method = "zca", epsilon: float = 1e-3) -> jax.Array:
    """Returns W `[..., c, c]` of covariances `[..., c, c]`, such that (x - mean) @ W is white.

    Raises:
        ValueError: for an unknown method, an epsilon that is not positive, or what are no square
            matrices.
    """
    _check_square("cov", cov)
    check_method(method, epsilon, cov.dtype)
    return inverse_sqrt(cov, epsilon) if method == "zca" else _principal_axes(cov, epsilon)


class _Spectrum(NamedTuple):
    """The eigenvectors of a symmetric matrix, in columns, and the roots of its eigenvalues."""

    vectors: jax.Array
    roots: jax.Array

    def into(self, matrix: jax.Array) -> jax.Array:
        """Returns the matrix in the basis of the eigenvectors."""
        return _matmul(_matmul(self.vectors.mT, matrix), self.vectors)

    def out_of(self, matrix: jax.Array) -> jax.Array:
        """Returns the matrix back from the basis of the eigenvectors."""
        return _matmul(_matmul(self.vectors, matrix), self.vectors.mT)


def inverse_sqrt(matrix: jax.Array, epsilon: float = 0.0) -> jax.Array:
    """Returns (matrix + epsilon I)^(-1/2) of symmetric positive semidefinite `[..., c, c]`.

    Differentiable any number of times, forward and reverse, at repeated eigenvalues too: the
    eigenvectors, whose derivative is infinite there, are not differentiated. Eigenvalues that
    rounding made negative count as zero. Without an epsilon the matrices must be definite.

    Raises:
        ValueError: for what are no square matrices, or an epsilon below zero.
    """
    _check_square("matrix", matrix)
    known = known_number("epsilon", epsilon)
    if known is not None and not known >= 0:
        raise ValueError(f"epsilon must be >= 0, got {epsilon}: eigenvalues are.")
    matrix = jnp.asarray(matrix)  # NumPy's float64 may be float32
    matrix = (matrix + matrix.mT) / 2
    values, vectors = jnp.linalg.eigh(lax.stop_gradient(matrix), symmetrize_input=False)
    spectrum = _Spectrum(vectors, jnp.sqrt(jnp.maximum(values, 0) + epsilon))
    one = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    return _inverse_root(matrix + epsilon * one, spectrum)


@jax.custom_jvp
def _inverse_root(matrix: jax.Array, spectrum: _Spectrum) -> jax.Array:
    """Returns W = matrix^(-1/2), by the spectrum of the matrix."""
    scaled = spectrum.vectors / spectrum.roots[..., None, :]
    return _matmul(scaled, spectrum.vectors.mT)


@_inverse_root.defjvp
def _inverse_root_jvp(
    primals: tuple[jax.Array, _Spectrum], tangents: tuple[jax.Array, _Spectrum]
) -> tuple[jax.Array, jax.Array]:
    """W moves along the X that solves S X A + A X S = -dA, with S = A^(1/2).

    In the basis of the eigenvectors the equation is one of numbers, and its solution
    multiplies each entry by (f(a) - f(b)) / (a - b), with f(a) = a^(-1/2), which is
    -1 / (sqrt(a) sqrt(b) (sqrt(a) + sqrt(b))): nothing cancels, and a = b is no exception. Further
    derivatives are those of the equation, not those of its solution by eigenvectors.
    """
    matrix, spectrum = primals
    inverse_root = _inverse_root(matrix, spectrum)
    root = _matmul(matrix, inverse_root)

    def equation(x: jax.Array) -> jax.Array:
        return -_matmul(_matmul(root, x), matrix) - _matmul(_matmul(matrix, x), root)

    def solve(_: object, right_hand_side: jax.Array) -> jax.Array:
        rows, columns = spectrum.roots[..., :, None], spectrum.roots[..., None, :]
        inside = spectrum.into(right_hand_side)
        return spectrum.out_of(-inside / (rows * columns * (rows + columns)))

    moved = lax.custom_linear_solve(equation, tangents[0], solve, symmetric=True)
    return inverse_root, moved


def _principal_axes(cov: jax.Array, epsilon: float) -> jax.Array:
    """Returns the eigenvectors in columns, widest first, over the roots of their eigenvalues."""
    values, vectors = jnp.linalg.eigh(cov)
    values, vectors = values[..., ::-1], vectors[..., ::-1]
    largest = jnp.argmax(jnp.abs(vectors), axis=-2, keepdims=True)
    vectors *= jnp.sign(jnp.take_along_axis(vectors, largest, axis=-2))
    matrix = vectors / jnp.sqrt(jnp.maximum(values, 0) + epsilon)[..., None, :]

    values = lax.stop_gradient(values)
    rounding = values[..., :1] * (values.shape[-1] * jnp.finfo(values.dtype).eps)
    distinct = jnp.all(values[..., :-1] - values[..., 1:] > rounding, axis=-1)
    return _differentiable_where(matrix, distinct[..., None, None])


@jax.custom_jvp
def _differentiable_where(matrix: jax.Array, known: jax.Array) -> jax.Array:
    """Returns the matrix; its derivative is NaN where it is not known."""
    del known
    return matrix


@_differentiable_where.defjvp
def _differentiable_where_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # By a factor: the transpose of a selection would turn NaN into zero.
    factor = jnp.where(primals[1], jnp.ones((), primals[0].dtype), jnp.nan)
    return _differentiable_where(*primals), tangents[0] * factor


def check_method(method: str, epsilon: float, dtype: DTypeLike) -> None:
    """Raises ValueError unless `whitening_matrix` can have these for covariances of `dtype`."""
    check_choice("method", method, Method)
    check_epsilon(epsilon, dtype)


def _check_square(name: str, matrices: jax.Array) -> None:
    check_floating(name, matrices)
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise ValueError(f"{name} must be square, [..., c, c], got shape {matrices.shape}.")
