BprobabilitiesJ½C‘9“Ê?ð:{_=?
~>õG<