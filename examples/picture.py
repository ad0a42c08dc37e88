"""The documents' picture: `python examples/picture.py > docs/memory.svg`."""

from soaview import Column, Layout, Scalar, Spec, Value

LAYOUT = Layout(
    [
        Column("pt", "float32"),
        Column("eta", "float32"),
        Column("phi", "float32"),
        Column("charge", "int8"),
        Column("cov", "float32", (3, 3)),
        Scalar("n_tracks", "int32"),
    ]
)
SPEC = Spec(features=["pt", "eta", "phi"], cov="cov", n=Value("n_tracks"), other=["phi", "pt"])


def picture() -> str:
    """On white, for pages of any colour."""
    return LAYOUT.to_svg(100, SPEC).replace('style="', 'style="color:#222;background:#fff;')


if __name__ == "__main__":
    print(picture())
