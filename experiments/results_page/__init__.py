"""One page of all committed runs: curves, tables, differences, each number with its record."""
