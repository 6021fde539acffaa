"""Published numbers, typed by hand from where `source` says. Shares are in [0, 1]."""

from vggt_jax.evaluation.protocols.base import ALL, Published

_PAGE = "project page of block-sparse attention (arXiv 2509.07120), table of Tanks & Temples"
_TEXT = "block-sparse attention (arXiv 2509.07120 v2), text and tables"
_FIGURE = "block-sparse attention (arXiv 2509.07120), read off a figure"
_VGGT = "VGGT (arXiv 2503.11651)"
_PI3 = "π³ (arXiv 2507.13347), from memory of its tables"


def _row(model: str, source: str, **options) -> Published:
    """Metrics are keywords; what is left are fields of `Published`."""
    fields = {"attention", "sparsity", "count", "exact"}
    metrics = tuple((name, value) for name, value in options.items() if name not in fields)
    options = {name: value for name, value in options.items() if name in fields}
    return Published(model=model, metrics=metrics, source=source, **options)


def _sparse(model: str, sparsity: float | None, source: str = _TEXT, **options) -> Published:
    return _row(model, source, attention="block-sparse", sparsity=sparsity, **options)


def _clouds(accuracy: float, completeness: float, consistency: float | None = None) -> dict:
    found = {
        "accuracy": accuracy,
        "completeness": completeness,
        "chamfer": round((accuracy + completeness) / 2, 5),
    }
    return found if consistency is None else found | {"normal_consistency": consistency}


RE10K_VGGT = (_row("VGGT", f"{_VGGT}, Table 1; others find .74 to .78", auc_30=0.853),)
RE10K_PI3 = (
    _row("VGGT", _PI3, auc_30=0.7762, exact=False),
    _row("π³", _PI3, auc_30=0.8590, exact=False),
)
RE10K_PAPER = (
    _row("VGGT", _FIGURE, auc_30=0.775, exact=False),
    _row("π³", _FIGURE, auc_30=0.874, exact=False),
    _row("MapAnything", _FIGURE, auc_30=0.78, exact=False),
    _sparse("VGGT", 0.75, _FIGURE, auc_30=0.67, exact=False),
    _sparse("π³", 0.75, _FIGURE, auc_30=0.745, exact=False),
)
CO3D_VGGT = (
    _row("VGGT", "README of VGGT's branch evaluation, all sequences", auc_30=0.895),
    _row("VGGT", f"{_VGGT}, Table 1", auc_30=0.882),
)
CO3D_VGGT_FAST = (
    _row("VGGT", "README of VGGT's branch evaluation, --fast_eval", auc_30=0.8998, auc_15=0.8389,
         auc_5=0.6745, auc_3=0.5665),
)  # fmt: skip
CO3D_PI3 = (
    _row("VGGT", _PI3, auc_30=0.8859, exact=False),
    _row("π³", _PI3, auc_30=0.8841, exact=False),
)
CO3D_PAPER = (
    _row("VGGT", _FIGURE, auc_30=0.91, exact=False),
    _row("π³", _FIGURE, auc_30=0.91, exact=False),
    _sparse("VGGT", 0.076, auc_30=0.908),
    _sparse("VGGT", 0.223, auc_30=0.902),
    _sparse("VGGT", 0.370, auc_30=0.882),
    _sparse("VGGT", 0.450, auc_30=0.862),
    _sparse("VGGT", 0.600, auc_30=0.820),
    _sparse("VGGT", 0.748, auc_30=0.795),
    _sparse("π³", 0.0865, auc_30=0.910),
    _sparse("π³", 0.255, auc_30=0.905),
)


def _tanks() -> tuple[Published, ...]:
    """RRA@5, RTA@5 (per cent) and ATE by model, number of images and sparsity."""
    table = {
        ("VGGT", 25): "84.4/81.5/.033 83.8/80.6/.032 81.4/79.5/.032 56.9/65.6/.037",
        ("VGGT", 50): "84.8/81.5/.023 83.8/80.9/.023 81.6/79.5/.023 57.3/61.0/.025",
        ("VGGT", 100): "84.8/81.3/.015 83.9/80.8/.016 81.7/79.7/.016 58.1/61.5/.017",
        ("VGGT", 200): "83.9/79.9/.012 83.1/79.6/.011 80.7/78.4/.011 57.1/60.8/.013",
        ("VGGT", ALL): "73.4/72.5/.008 72.7/72.2/.009 70.3/71.1/.008 46.0/53.0/.009",
        ("π³", 25): "84.4/83.8/.020 84.4/83.5/.020 82.6/82.1/.019 56.9/65.6/.025",
        ("π³", 50): "85.4/84.6/.015 84.5/83.9/.015 82.3/82.9/.015 57.9/67.0/.016",
        ("π³", 100): "85.7/84.6/.012 84.9/84.2/.012 83.0/83.0/.012 58.9/67.2/.012",
        ("π³", 200): "85.4/83.9/.009 84.6/83.5/.009 82.9/82.3/.009 59.8/67.7/.009",
        ("π³", ALL): "75.8/75.8/.006 74.8/75.3/.006 73.0/74.2/.006 50.0/59.1/.006",
    }
    rows = []
    for (model, count), line in table.items():
        for sparsity, cell in zip((0.0, 0.25, 0.5, 0.75), line.split(), strict=True):
            rra, rta, ate = map(float, cell.split("/"))
            options = {"rra_5": rra / 100, "rta_5": rta / 100, "ate": ate, "count": count}
            dense = _row(model, _PAGE, **options)
            rows.append(_sparse(model, sparsity, _PAGE, **options) if sparsity else dense)
    return tuple(rows)


TANKS_PAPER = _tanks()
ETH3D_PAPER = (
    _row("VGGT", _FIGURE, chamfer=0.265, exact=False),
    _row("π³", _FIGURE, chamfer=0.10, exact=False),
    _sparse("VGGT", 0.076, **_clouds(0.232, 0.190, 0.886)),
    _sparse("VGGT", 0.255, **_clouds(0.212, 0.172, 0.885)),
    _sparse("VGGT", 0.370, **_clouds(0.201, 0.158, 0.880)),
    _sparse("VGGT", 0.600, **_clouds(0.233, 0.185, 0.856)),
    _sparse("VGGT", 0.748, **_clouds(0.250, 0.205, 0.837)),
    _sparse("π³", 0.0865, **_clouds(0.107, 0.085, 0.898)),
)
SEVEN_SCENES_PI3 = (
    _row("VGGT", _PI3, **_clouds(0.046, 0.057), exact=False),
    _row("π³", _PI3, **_clouds(0.048, 0.072), exact=False),
)
SEVEN_SCENES_PI3_DENSE = (
    _row("VGGT", _PI3, **_clouds(0.022, 0.026), exact=False),
    _row("π³", _PI3, **_clouds(0.015, 0.022), exact=False),
)
SEVEN_SCENES_PAPER = (
    _row("VGGT", _FIGURE, chamfer=0.061, exact=False),
    _row("π³", _FIGURE, chamfer=0.060, exact=False),
)
SEVEN_SCENES_CUT3R = (
    _row("VGGT", "issue 46 of yyfz/Pi3, depth branch, a script like CUT3R's", accuracy=0.043,
         completeness=0.058, normal_consistency=0.752),
)  # fmt: skip
NRGBD_PI3 = (
    _row("VGGT", "issue 46 of yyfz/Pi3", accuracy=0.043, completeness=0.061),
    _row("π³", "issue 46 of yyfz/Pi3", **_clouds(0.028, 0.030, 0.864)),
)
NRGBD_PAPER = (
    _row("VGGT", _FIGURE, chamfer=0.049, exact=False),
    _row("π³", _FIGURE, chamfer=0.028, exact=False),
    _sparse("VGGT", None, f"{_TEXT}; the lightest setting", **_clouds(0.047, 0.049, 0.897)),
    _sparse("VGGT", None, f"{_TEXT}; the sparsest setting", **_clouds(0.078, 0.090, 0.849)),
    _sparse("π³", None, f"{_TEXT}; the lightest setting", **_clouds(0.028, 0.028, 0.907)),
    _sparse("π³", None, f"{_TEXT}; the sparsest setting", **_clouds(0.083, 0.067, 0.815)),
)
DTU_PAPER = (
    _row("VGGT", "block-sparse attention, version 2, read off a figure; version 1 has 1.55",
         chamfer=1.20, exact=False),
    _sparse("VGGT", 0.078, **_clouds(1.075, 1.331, 0.613)),
    _sparse("VGGT", 0.748, **_clouds(1.952, 1.342, 0.617)),
    _sparse("π³", None, f"{_TEXT}; the lightest setting", **_clouds(1.564, 1.356, 0.609)),
    _sparse("π³", 0.769, **_clouds(3.172, 1.771, 0.620)),
)  # fmt: skip
DTU_VGGT = (
    _row("VGGT", f"{_VGGT}, Table 2; not reproduced by others", accuracy=0.389, completeness=0.374,
         chamfer=0.382),
)  # fmt: skip
SCANNET_PI3 = (
    _row("VGGT", _PI3, ate=0.035, exact=False),
    _row("π³", _PI3, ate=0.031, exact=False),
)
SCANNET_PAPER = (
    _row("VGGT", _FIGURE, ate=0.038, exact=False),
    _row("π³", _FIGURE, ate=0.034, exact=False),
)
SCANNET_LONG = tuple(
    _row(
        model, f"{_TEXT}; the protocol is guessed from the size of the numbers", ate=ate, count=100
    )
    for model, ate in (("VGGT", 0.18), ("MapAnything", 0.24), ("π³", 0.15))
)
