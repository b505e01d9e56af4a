"""One file a format; a source has a length and gives `source[i] -> Example`. No JAX here."""
