"""``python -m simko_mlx_cli``, or ``python -m cli`` in a source checkout."""

from .main import app

app()
