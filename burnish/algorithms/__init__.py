"""Pure functions of tensors, which import nothing of burnish. A wrong shape of an argument raises ValueError."""
