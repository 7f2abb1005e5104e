
BprobabilitiesJ([ª:‘î°:ª-¶:÷|?;@!;I£1;Â9ıÄg9AO9