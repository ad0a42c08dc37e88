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


if __name__ == "__main__":
    print(LAYOUT.to_svg(100, SPEC))
