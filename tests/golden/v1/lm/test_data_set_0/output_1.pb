
BprobabilitiesJ(	N#:™
*:c´Ž9)í0;†¢C>×ôs;~ù‰:WË>ùÌ>@!;