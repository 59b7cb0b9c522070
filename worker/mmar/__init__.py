"""Clara's MMARs, read and translated to MONAI bundles without evaluating anything of them.

The table of names (`names`) says what becomes of each component; everything else here is a pure function of the files.
"""
