import numpy as np
import pytest

from holdfast.errors import FormatError
from holdfast.format import dtypes


@pytest.mark.parametrize("dtype", [*dtypes.NATIVE, *dtypes.FOREIGN])
def test_item_size_is_that_of_the_numpy_carrier(dtype):
    """Every dtype of the format is carried by a NumPy dtype of exactly its width."""
    assert np.dtype(dtypes.numpy_name(dtype)).itemsize == dtypes.item_size(dtype)


@pytest.mark.parametrize(
    "code", ["<M8[ns]", ">f4", "<U7", "|S3", "|V5", "|S0", "<m8[25s]", "<f16", "<c32", "|b1", "<M8"]
)
def test_plain_numpy_dtypes_are_derived(code):
    """A plain NumPy dtype has the item size that NumPy gives it."""
    assert dtypes.item_size(f"numpy:{code}") == np.dtype(code).itemsize
    assert dtypes.numpy_name(f"numpy:{code}") == code


@pytest.mark.parametrize(
    "dtype",
    ["F31", "", "f4", "numpy:", "numpy:|O8", "numpy:<f4[3]", "numpy:[('a','<f4')]", "numpy:<f99999999999"],
)
def test_unknown_dtypes_are_refused(dtype):
    """What is no plain dtype is a FormatError that quotes it, for each question asked."""
    for ask in (dtypes.item_size, dtypes.numpy_name, dtypes.nonfinite):
        with pytest.raises(FormatError) as caught:
            ask(dtype)
        assert repr(dtype) in str(caught.value)


def test_foreign_dtypes_are_stored_as_bytes():
    """A dtype that safetensors files lack is stored as U8 with an axis of its item size."""
    assert dtypes.stored("F32", [2, 3]) == ("F32", (2, 3))
    assert dtypes.stored("C128", (2, 3)) == ("U8", (2, 3, 16))
    assert dtypes.stored("numpy:<M8[ns]", ()) == ("U8", (8,))


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("F16", "<f2"), ("F32", "<f4"), ("F64", "<f8"), ("numpy:>f4", ">f4"), ("numpy:>f2", ">f2")],
)
def test_bit_patterns_agree_with_numpy(dtype, name):
    """The patterns that count as not finite are exactly those for which NumPy says so."""
    kind = dtypes.nonfinite(dtype)
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 256, (4000, kind.width), np.uint8)
    edges = np.array(
        [
            np.inf,
            -np.inf,
            np.nan,
            -np.nan,
            0.0,
            -0.0,
            np.finfo(name).max,
            np.finfo(name).min,
            np.finfo(name).tiny,
        ],
        name,
    )
    values = np.concatenate([bits.view(name)[:, 0], edges]).astype(name)
    signed = values.view(f"{kind.order}i{kind.width}") >= kind.signed
    unsigned = values.view(f"{kind.order}u{kind.width}") >= kind.unsigned
    assert ((signed | unsigned) == ~np.isfinite(values)).all()


@pytest.mark.parametrize(
    ("dtype", "torch_name"),
    [
        ("BF16", "bfloat16"),
        ("F8_E5M2", "float8_e5m2"),
        ("F8_E4M3", "float8_e4m3fn"),
        ("F8_E8M0", "float8_e8m0fnu"),
        ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
        ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
    ],
)
def test_bit_patterns_agree_with_torch(dtype, torch_name):
    """For the dtypes that NumPy lacks, every pattern is judged as torch judges it."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch, torch_name):
        pytest.skip(f"this torch has no {torch_name}")
    from holdfast.payload.filling import finite

    kind = dtypes.nonfinite(dtype)
    codes = np.arange(1 << (8 * kind.width), dtype=f"<u{kind.width}")
    values = torch.from_numpy(codes.view(f"<i{kind.width}")).view(getattr(torch, torch_name)).float()
    ours = [
        finite(codes[i : i + 1].view(np.uint8), kind) for i in range(0, len(codes), 1 + len(codes) // 5000)
    ]
    assert ours == torch.isfinite(values)[:: 1 + len(codes) // 5000].tolist()


def test_complex_numbers_are_judged_by_their_halves():
    """A complex dtype is looked at as numbers of half its width; integers not at all."""
    assert dtypes.nonfinite("C64") == dtypes.nonfinite("F32")
    assert dtypes.nonfinite("C32") == dtypes.nonfinite("F16")
    assert dtypes.nonfinite("numpy:<f16") is None
    assert all(dtypes.nonfinite(dtype) is None for dtype in ("BOOL", "I8", "U8", "U64", "numpy:<M8[ns]"))


def test_alignment_divides_and_falls_to_the_power_of_two():
    """The alignment is the item size, or for odd items the largest power of two in it."""
    assert dtypes.alignment("F64") == 8
    assert dtypes.alignment("C128") == 16
    assert dtypes.alignment("numpy:<U7") == 4
    assert dtypes.alignment("numpy:|S3") == 1
