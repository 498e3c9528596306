SELECT leaf, count, h1, h2 FROM merkle_leaves
