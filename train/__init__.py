"""Recipe in, checkpoint out. Needs `ohlol[train]`."""
