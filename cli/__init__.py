"""The command line, installed as ``simko_mlx_cli``. Inside, imports are relative."""
