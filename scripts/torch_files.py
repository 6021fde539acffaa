"""Files of `torch.save`, written without PyTorch, of dictionaries, lists, text and arrays."""

import struct
import zipfile

import numpy as np

_STORAGES = {"u1": "ByteStorage", "i8": "LongStorage", "f4": "FloatStorage"}


def save_torch(path, value):
    """Writes a file that `torch.load(path, weights_only=True)` reads, arrays as tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    storages = []
    pickled = b"\x80\x02" + _pickled(value, storages) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for i, array in enumerate(storages):
            archive.writestr(f"archive/data/{i}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def _pickled(value, storages):
    """Operations of pickle's protocol 2 that leave a value on the stack."""
    whole = lambda values: b"(" + b"".join(_pickled(x, storages) for x in values)
    if isinstance(value, dict):
        return b"}" + whole(x for pair in value.items() for x in pair) + b"u"
    if isinstance(value, list):
        return b"]" + whole(value) + b"e"
    if isinstance(value, tuple):
        return whole(value) + b"t"
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    array = np.ascontiguousarray(value)
    storages.append(array)
    kind = f"ctorch\n{_STORAGES[array.dtype.str[1:]]}\n".encode()
    number = str(len(storages) - 1)
    storage = b"(" + _pickled("storage", storages) + kind + _pickled(number, storages)
    storage += _pickled("cpu", storages) + _pickled(array.size, storages) + b"tQ"
    strides = tuple(x // array.itemsize for x in array.strides)
    places = b"".join(_pickled(x, storages) for x in (0, array.shape, strides))
    no_hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + places + b"\x89" + no_hooks + b"tR"
