"""The arena: several methods on equal terms. A `plan` is begun in a folder (`begin`), its `ring`; `runs` fill it, and
`table`, `notes` and `report` tell how it came out."""
