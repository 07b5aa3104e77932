"""Published tables and figures, made again with the numbers of this machine.

`python -m reproductions` lists them; `python -m reproductions NAME` makes one again. They are no
part of the installed package.

    catalogue      The list of names.
    outcome        What a reproduction is given and what it returns.
    maxpool        The study of max-pooling (Boustany 2024).
    gallery        Defective training steps with healthy twins; the tests of diagnosis use them too.
    table1         Tightness of error bounds, by model.
    attention      Error of attention against sequence length and bits.
    instabilities  Injected instabilities that are found.
"""
