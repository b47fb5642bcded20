"""Jobs over a whole replica: restore, copy, verify."""
