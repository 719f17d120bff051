"""One pass over one object: gather what is, plan what is to be (pure), apply the difference."""
