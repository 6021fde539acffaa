"""Which kinds of files lie beside photographs, by their names; which formats are read, and how."""

from pathlib import Path

# What Pillow reads and photographs come in. Icons and formats that it hands to other programs
# (PostScript to Ghostscript) or only recognises are left out.
PICTURES = tuple(
    ".apng .avif .avifs .blp .bmp .bw .dcx .dds .dib .fit .fits .flc .fli .ftc .ftu .gbr .gif .icb "
    ".im .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .msp .pbm .pcd .pcx .pfm .pgm "
    ".png .pnm .ppm .psd .pxr .qoi .ras .rgb .rgba .sgi .tga .tif .tiff .vda .vst .webp .xbm "
    ".xpm".split()
)
HEIF = (".heic", ".heics", ".heif", ".heifs", ".hif")
# Pillow reads the preview that lies in front of the sensor's pixels and takes it for the picture.
RAW = tuple(
    ".3fr .arw .bay .cap .cr2 .cr3 .crw .dcr .dcs .dng .drf .eip .erf .fff .gpr .iiq .k25 .kdc "
    ".mdc .mef .mos .mrw .nef .nrw .orf .ori .pef .ptx .r3d .raf .raw .rw2 .rwl .rwz .sr2 .srf "
    ".srw .x3f".split()
)
VIDEOS = tuple(
    ".3g2 .3gp .asf .avi .divx .f4v .flv .insv .lrv .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts "
    ".mxf .ogv .ts .vob .webm .wmv".split()
)
_ICONS = (".cur", ".icns", ".ico")
_OTHER_PICTURES = tuple(
    ".ai .arq .cdr .emf .eps .exr .hdr .insp .jpegxl .jxl .jxr .kra .ps .pdf .svg .svgz .wdp "
    ".wmf .xcf".split()
)
# What systems put into folders of photographs.
_OF_SYSTEMS = ("thumbs.db", "desktop.ini", "icon\r")

OTHER_FILE = "other file", ""
"""The kind, as `kind_of` has it, of what is neither a picture nor a video."""

HEIF_EXTRA = "pip install 'vggt-jax[heif]' reads HEIC"
_DEVELOP = "develop RAW files to JPEG, PNG or 16-bit TIFF"

# Pillow's names of the formats whose decoders may see a file, whatever its name.
FORMATS = tuple(
    "JPEG PNG WEBP TIFF AVIF HEIF BMP DIB GIF JPEG2000 PPM PSD QOI DDS SGI FITS ICNS ICO CUR DCX "
    "PCX FLI BLP FTEX GBR MSP PIXAR SUN XBM XPM".split()
)
# And of those that have no signature, so that names decide.
FORMATS_BY_NAME = {
    ".im": "IM",
    ".pcd": "PCD",
    **dict.fromkeys((".icb", ".tga", ".vda", ".vst"), "TGA"),
}


def extension(path: Path) -> str:
    """The ending of a file's name in lower case."""
    return path.suffix.lower()


def is_picture(path: Path) -> bool:
    """Whether a file is one to read as a photograph, by its name."""
    return extension(path) in PICTURES or (extension(path) in HEIF and has_heif())


def has_heif() -> bool:
    """Whether pillow-heif, which reads HEIC, is installed."""
    import importlib.util

    try:
        return importlib.util.find_spec("pillow_heif") is not None
    except ValueError:  # Somebody put None in its place.
        return False


def kind_of(path: Path) -> tuple[str, str] | None:
    """What a file that is not read is called, in the singular, and the way out, if there is one.

    None for what systems put into folders.
    """
    ending = extension(path)
    if path.name.lower() in _OF_SYSTEMS:
        return None
    for kind, endings, way_out in (
        ("HEIC picture", HEIF, HEIF_EXTRA),
        ("RAW file", RAW, _DEVELOP),
        ("video", VIDEOS, "a video is a scene of its own: give the file"),
        ("icon", _ICONS, ""),
        ("picture in a format that is not read", _OTHER_PICTURES, "convert to JPEG or PNG"),
    ):
        if ending in endings:
            return kind, way_out
    if ending not in (".txt", ".json", ".xml", ".xmp") and (found := format_of(path)):
        return "picture under another name", f"{path.name} holds {found}: rename it"
    return OTHER_FILE


def format_of(path: Path) -> str | None:
    """The format that a regular file begins like, whatever its name: "JPEG", "HEIC", "RAW", ..."""
    try:
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            return format_of_bytes(file.read(32))
    except (OSError, ValueError):
        return None


def format_of_bytes(start: bytes) -> str | None:
    """The format of a file that begins so; see `format_of`."""
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        if brand == b"crx ":
            return "RAW"
        if brand in (b"avif", b"avis"):
            return "AVIF"
        is_heif = brand[:3] in (b"hei", b"hev") or brand in (b"mif1", b"msf1")
        return "HEIC" if is_heif else "a video"
    for signature, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n", "PNG"),
        (b"GIF8", "GIF"),
        (b"FUJIFILMCCD-RAW", "RAW"),
        (b"IIRO", "RAW"),
        (b"IIU\0", "RAW"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"8BPS", "PSD"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\x1aE\xdf\xa3", "a video"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"%PDF", "PDF"),
        (b"%!PS", "PostScript"),
    ):
        if start.startswith(signature):
            return name
    if start[:4] == b"RIFF":
        return {b"WEBP": "WebP", b"AVI ": "a video"}.get(start[8:12])
    return None
